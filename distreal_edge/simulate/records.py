"""What a simulation tells of itself: a record a round, and what is needed to go on from one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from distreal_edge.aggregator import Averaged, Scores
    from distreal_edge.simulate.training import Trained, Training
    from distreal_edge.transport import Manifest

__all__ = ["Checkpoint", "Returned", "RoundRecord", "Score", "record_of", "score_of"]


class Score(msgspec.Struct, frozen=True):
    """Accuracy (0..1) and mean cross-entropy on held-out images; None when it has diverged."""

    accuracy: float | None
    loss: float | None


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A closed round, or an aggregation where there are no rounds. Times are seconds of virtual time.

    `late` devices had an update that did not count; `diverged` ones had nothing sound to send. `rows` is how many
    mini-batches trained each row of the table. Of the devices' time `downloads_s` went into models, `busy_s` into
    training and `uploads_s` into updates, summed up over all that trained, late ones included. `staleness` is by how
    many aggregations the updates were behind in the mean. `score` is that of the model after the round, None when
    nobody looked.
    """

    round: int
    opened_s: float
    closed_s: float
    why: str
    ceiling: float
    lr: float
    selected: int
    answered: int
    late: int
    diverged: int = 0
    mini_batches: int
    images: int
    macs: int
    training_loss: float | None
    rows: dict[int, int]
    downloads_s: float
    busy_s: float
    uploads_s: float
    upload_bytes: int
    staleness: float = 0.0
    score: Score | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a federation stands between two rounds: all that goes over from one to the next.

    `unscored` is the round that was closed last, when its model, which is `model`, is still to be scored. `row_shares`
    are the rows' shares of the full network's MACs. `real_s` is how long it took here, which nothing depends on.
    """

    records: tuple[RoundRecord, ...]
    unscored: RoundRecord | None
    now_s: float
    row_shares: tuple[float, ...]
    model: bytes
    finished: bool
    real_s: float = 0.0

    @property
    def done(self) -> int:
        """The number of the round that was closed last."""
        if self.unscored is not None:
            return self.unscored.round
        return self.records[-1].round if self.records else 0


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """What a device was given to do, what came of it, and when that arrived; None when it sent nothing."""

    task: Training
    trained: Trained
    arrival_s: float | None


def record_of(
    number: int,
    manifest: Manifest,
    averaged: Averaged,
    returned: Iterable[Returned],
    *,
    opened_s: float,
    closed_s: float,
    why: str,
    selected: int,
    late: int,
    staleness: float = 0.0,
) -> RoundRecord:
    """Put together what is to be told of a round; `manifest` is the one that holds when it closes."""
    returned = list(returned)
    rows: Counter[int] = Counter()
    for each in returned:
        rows.update(each.trained.rows)
    sent = [each for each in returned if each.arrival_s is not None]
    return RoundRecord(
        round=number,
        opened_s=opened_s,
        closed_s=closed_s,
        why=why,
        ceiling=manifest.ceiling,
        lr=manifest.training.lr,
        selected=selected,
        answered=len(averaged.answered),
        late=late,
        diverged=sum(each.trained.diverged for each in returned),
        mini_batches=averaged.mini_batches,
        images=averaged.images,
        macs=averaged.macs,
        training_loss=averaged.training_loss,
        rows=dict(sorted(rows.items())),
        downloads_s=sum(each.task.start_s - each.task.opened_s for each in returned),
        busy_s=sum(each.trained.busy_s for each in returned),
        uploads_s=sum((each.arrival_s or 0.0) - each.trained.end_s for each in sent),
        upload_bytes=sum(len(each.trained.update) for each in sent),
        staleness=staleness,
    )


def score_of(scores: Scores | None) -> Score:
    """Return the scores of a model; none, where all that it says is not a number."""
    return Score(None, None) if scores is None or scores.loss is None else Score(scores.accuracy, scores.loss)
