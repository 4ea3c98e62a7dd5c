"""What closing a round computes: the next model, how good it is, and its record. Nothing is stored or sent here."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from distreal_edge.aggregator.averaging import AverageKind, AverageRule, average_updates, pool_statistics
from distreal_edge.aggregator.evaluation import (
    HeldOut,
    Part,
    Scores,
    evaluate,
    measure_statistics,
    with_statistics,
)
from distreal_edge.device import UpdateReader, encode_update, read_update
from distreal_edge.errors import NetworkError
from distreal_edge.network import Network

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from distreal_edge.aggregator.rounds import Open
    from distreal_edge.device import Update
    from distreal_edge.transport import Manifest

__all__ = ["Averaged", "Closed", "Judged", "Record", "average_round", "judge_round", "record_round"]

_log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A closed round: a line of `rounds.jsonl`.

    `accuracy` and `loss` are those of the model after round `evaluated_round`; None when it was not evaluated. They are
    of the full network, or of the part that has been trained, which is then `evaluated_share` of its MACs. `macs` are
    the multiply-accumulates that all devices spent. `model` is the SHA-256 of the model's file.
    """

    round: int
    started_s: float
    closed_s: float
    ceiling: float
    lr: float
    selected: tuple[str, ...]
    answered: tuple[str, ...]
    images: int
    mini_batches: int
    macs: int
    training_loss: float | None
    evaluated_round: int | None
    evaluated_images: int
    evaluated_share: float = 1.0
    accuracy: float | None
    loss: float | None
    model: str


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """The model that the updates make of the one that was sent, and what they report.

    `measured` is the model that was sent, with the batch-norm statistics that devices measured on it; None when no
    device did.
    """

    network: Network
    measured: Network | None
    answered: tuple[str, ...]
    images: int
    mini_batches: int
    macs: int
    training_loss: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The newest model whose batch-norm statistics belong to it, the round after which it was the model, its scores.

    `share` of the full network's MACs is what was scored.
    """

    network: Network
    after_round: int
    scores: Scores | None
    share: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Closed:
    """All that is to be stored of a closed round: the bytes of its model, and its record."""

    model: bytes
    record: Record


def average_round(
    network: Network,
    updates: Iterable[Update | UpdateReader],
    rule: AverageRule | AverageKind,
    factors: Sequence[float] | None = None,
) -> Averaged:
    """Average a round's updates of `network`; with none of them the network stays as it is.

    Updates may lie on the disk, of which a part at a time is read then; those of a large network or of many devices
    should. `factors` are as for `average_updates`.
    """
    rule = rule if isinstance(rule, AverageRule) else AverageRule(rule)
    readers = [
        update if isinstance(update, UpdateReader) else read_update(encode_update(update), network.plan)
        for update in updates
    ]
    headers = [reader.header for reader in readers]
    pooled = pool_statistics(
        network.plan, [(reader.header.statistics_images, reader.statistics()) for reader in readers], robust=rule.robust
    )
    images = sum(header.images for header in headers)
    return Averaged(
        network=Network(network.plan, average_updates(network.plan, network.weights, readers, rule, factors)),
        measured=with_statistics(network, pooled) if pooled else None,
        answered=tuple(sorted(header.device for header in headers)),
        images=images,
        mini_batches=sum(header.mini_batches for header in headers),
        macs=sum(header.macs for header in headers),
        training_loss=sum(header.images * (header.loss or 0.0) for header in headers) / images if images else None,
    )


def judge_round(opened: Open, averaged: Averaged, held_out: HeldOut, part: Part | None = None) -> Judged | None:
    """Find the newest model whose statistics are known, and score it; None when this round made none known.

    With `part`, nothing else of the network has been trained yet: then that part is scored, cut out of the model, where
    its own statistics can be measured here. Filters that nobody trained would only be noise in it.

    Measured on calibration images, or with none to measure, that is the model just averaged; measured on devices, it
    is the one that they received.
    """
    known = _known(opened, averaged, held_out) if averaged.answered else None
    if known is None:
        return None
    network, after_round = known
    if held_out.test is None:
        return Judged(network, after_round, None)
    narrow = None if part is None else _cut_out(network, part, held_out)
    scores = evaluate(narrow or network, held_out.test, held_out.threads)
    return Judged(network, after_round, scores, part.share if part is not None and narrow is not None else 1.0)


def _cut_out(network: Network, part: Part, held_out: HeldOut) -> Network | None:
    """Return the part as a network of its own; None when its statistics or the network itself do not allow for it."""
    if network.plan.statistics and held_out.calibration is None:
        return None
    try:
        narrow = network.narrowed(part.vector)
    except NetworkError:  # grouped convolutions
        return None
    if held_out.calibration is None:
        return narrow
    return with_statistics(narrow, measure_statistics(narrow, held_out.calibration, held_out.threads))


def _known(opened: Open, averaged: Averaged, held_out: HeldOut) -> tuple[Network, int] | None:
    network = averaged.network
    if not network.plan.statistics:
        return network, opened.number
    if held_out.calibration is not None:
        statistics = measure_statistics(network, held_out.calibration, held_out.threads)
        if all(np.isfinite(tensor).all() for tensor in statistics.values()):
            return with_statistics(network, statistics), opened.number
        _log.warning("round %d: the model overflows on the calibration images; it has diverged", opened.number)
        return None
    if averaged.measured is None:
        return None
    # A round that only measured left the model as it was received.
    return averaged.measured, opened.number if opened.measure_only else opened.number - 1


def record_round(
    opened: Open, manifest: Manifest, averaged: Averaged, judged: Judged | None, *, closed_s: float
) -> Closed:
    """Put together what is to be stored."""
    newest = judged.network if judged is not None and judged.after_round == opened.number else averaged.network
    model = newest.to_bytes()
    scores = None if judged is None else judged.scores
    return Closed(
        model,
        Record(
            round=opened.number,
            started_s=opened.opened_s,
            closed_s=closed_s,
            ceiling=manifest.ceiling,
            lr=manifest.training.lr,
            selected=opened.selected,
            answered=averaged.answered,
            images=averaged.images,
            mini_batches=averaged.mini_batches,
            macs=averaged.macs,
            training_loss=averaged.training_loss,
            evaluated_round=None if judged is None else judged.after_round,
            evaluated_images=0 if scores is None else scores.images,
            evaluated_share=1.0 if judged is None else judged.share,
            accuracy=None if scores is None else scores.accuracy,
            loss=None if scores is None else scores.loss,
            model=hashlib.sha256(model).hexdigest(),
        ),
    )
