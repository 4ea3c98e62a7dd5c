"""From evaluations to rows: which vectors to start from, which to confirm, and which of those a table holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.dropout import SCHEMA_VERSION, Row, Table, counts_vector
from distreal_edge.errors import ConfigError
from distreal_edge.search.families import FAMILIES, MEMBERS, family_members
from distreal_edge.search.front import pareto_front
from distreal_edge.search.speed import DIVERGED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from distreal_edge.network import Cost, Network
    from distreal_edge.search.records import Confirmation, Evaluation

__all__ = [
    "LEAST_ROWS",
    "Confirmed",
    "choose_candidates",
    "confirmed_vectors",
    "estimated_scores",
    "seed_vectors",
    "table_of",
]

LEAST_ROWS: Final = 16
"""A table of fewer is told to be short: boards have more budgets than that."""
_FEATURES: Final = 5
_WIDTH_COUNTS: Final = 0.02
"""Nats that twice the cost is worth at the same training loss: what confirmations of ResNet-20 on CIFAR-10 showed."""

_HARDLY_MORE: Final = 1.02
"""Times the cost: a board's free cores are not known any better."""
_COARSE_TO_FINE: Final = (MEMBERS - 1, 0, *sorted(range(1, MEMBERS - 1), key=lambda place: f"{place:03b}"[::-1]))
_FAR_BELOW: Final = DIVERGED / 2.0

Counts = tuple[int, ...]


def seed_vectors(network: Network, cheapest: float) -> list[tuple[str, Counts]]:
    """Return what NSGA-II starts from, each with its family: every family, from the cheapest share to the full network.

    Shares are of the MACs and rise by the same factor. The full network comes first, then the widest and the cheapest
    of each family, then those in between, ever finer: a search that is short of time has seen all costs.
    """
    members = {family: family_members(network, family, cheapest) for family in FAMILIES}
    seeds = [("full", network.plan.sizes)]
    for place in _COARSE_TO_FINE:
        seeds += [(family, own[place]) for family, own in members.items()]
    return list({counts: (origin, counts) for origin, counts in reversed(seeds)}.values())[::-1]


def choose_candidates(evaluations: Sequence[Evaluation], number: int, cheapest: float) -> list[Counts]:
    """Return about `number` vectors to confirm: the best of each band of costs, and the full network.

    Bands are of equal width in log2(cost) from `cheapest` to 1. Wide vectors all have about the same training loss, but
    those that train more filters do more for the full network; so a vector counts as beaten only when a cheaper one's
    loss is lower by a little for each doubling of the cost. A band whose best vector is beaten gives its place to the
    next best vectors of the front.
    """

    def unbeaten(among: Sequence[Evaluation]) -> list[Evaluation]:
        points = [(one.cost, _WIDTH_COUNTS * log2(one.cost) - one.loss) for one in among]
        return [among[position] for position in pareto_front(points)]

    narrower = [evaluation for evaluation in evaluations if evaluation.cost < 1.0]
    best: dict[int, Evaluation] = {}
    for evaluation in narrower:
        band = min(number - 1, int(number * (1.0 - log2(max(evaluation.cost, cheapest)) / log2(cheapest))))
        if band not in best or evaluation.loss < best[band].loss:
            best[band] = evaluation
    chosen = dict.fromkeys(one.counts for one in unbeaten([best[band] for band in sorted(best)]))
    for one in sorted(unbeaten(narrower), key=lambda one: one.loss):
        if len(chosen) >= number:
            break
        chosen[one.counts] = None
    return list(chosen | dict.fromkeys(one.counts for one in evaluations if one.cost >= 1.0))


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A vector's confirmation, over snapshots and seeds in their order, in nats.

    `falls`: by how much the full network's loss is lower than if nothing had been trained; `own_losses`: the training
    losses of the vector's mini-batches.
    """

    falls: tuple[float, ...]
    own_losses: tuple[float, ...]


def confirmed_vectors(confirmations: Sequence[Confirmation]) -> dict[Counts, Confirmed]:
    """Return every confirmed vector; those that miss one of the snapshots and seeds are left out.

    Raises `ConfigError` when the full network's own training has diverged.
    """
    found: dict[Counts, dict[tuple[int, int], Confirmation]] = {}
    for one in confirmations:
        found.setdefault(one.task.counts, {})[one.task.snapshot, one.task.seed] = one
    nothing = found.pop((), {})
    if any(one.loss >= DIVERGED for one in nothing.values()):
        raise ConfigError(
            "the full network diverges right after the search's snapshots, so that no vector can be compared with it; "
            "search with a lower --lr, and give that search another --study"
        )
    keys = sorted(nothing)
    return {
        counts: Confirmed(
            tuple(nothing[key].loss - own[key].loss for key in keys), tuple(own[key].own_loss for key in keys)
        )
        for counts, own in found.items()
        if own.keys() >= nothing.keys()
    }


def estimated_scores(confirmed: Mapping[Counts, Confirmed], costs: Mapping[Counts, float]) -> dict[Counts, float]:
    """Return each vector's score: its mean fall of the full network's loss, with the noise taken out as far as it goes.

    The fall is noisy; the loss of the vector's own mini-batches hardly is, and goes with it. So the fall is predicted
    from that loss, the cost, and how many filters are trained, by least squares over all vectors, and each measured
    fall is drawn towards its prediction: all the way when noise explains the distance, not at all when the distances
    are far beyond noise (empirical Bayes). `costs` are shares of the full network's. A vector whose training has
    diverged says nothing about others, and scores what was measured.
    """
    sound = {counts: own for counts, own in confirmed.items() if min(own.falls) > -_FAR_BELOW}
    diverged = {counts: float(np.mean(own.falls)) for counts, own in confirmed.items() if counts not in sound}
    return _estimated(sound, costs) | diverged


def _estimated(confirmed: Mapping[Counts, Confirmed], costs: Mapping[Counts, float]) -> dict[Counts, float]:
    order = list(confirmed)
    if not order:
        return {}
    falls = np.array([confirmed[counts].falls for counts in order])  # vector, snapshot and seed
    measured = falls.mean(axis=1)
    if falls.shape[1] < 2 or len(order) <= 2 * _FEATURES:
        return dict(zip(order, measured.tolist(), strict=True))
    own = np.array([np.mean(confirmed[counts].own_losses) for counts in order])
    width = np.array([log2(costs[counts]) for counts in order])
    filters = np.log2([sum(counts) for counts in order])
    features = np.stack([np.ones(len(order)), own, width, width**2, filters], axis=1)
    weights, *_ = np.linalg.lstsq(features, measured, rcond=None)
    predicted = features @ weights
    # What a snapshot and seed does to all vectors alike is no noise between them.
    apart = falls - falls.mean(axis=0) - (measured - measured.mean())[:, None]
    freedom = (falls.shape[0] - 1) * (falls.shape[1] - 1)
    noise = float((apart**2).sum()) / freedom / falls.shape[1]
    distance = float(((measured - predicted) ** 2).sum()) / (len(order) - _FEATURES)
    believed = max(0.0, 1.0 - noise / distance) if distance > 0.0 else 0.0
    return dict(zip(order, (predicted + believed * (measured - predicted)).tolist(), strict=True))


def table_of(
    network: Network, scores: Mapping[Counts, float], *, draw: str, data: str, origin: str, batch: int, rows: int
) -> Table:
    """Return the table of the best of these vectors: no row is beaten, and the full network is last whatever it scored.

    A full network that another row beats stands last all the same, because it alone trains every filter: it gets the
    smallest score above. A row goes when another costs hardly more and scores better: no budget lies between them. Of
    more than `rows` rows those go that are closest to their neighbours in log2(cost).
    """
    sizes = network.plan.sizes
    points = [(counts, network.cost(counts_vector(counts, sizes), batch), score) for counts, score in scores.items()]
    narrower = [point for point in points if point[0] != sizes]
    front = [narrower[position] for position in pareto_front([(cost.macs, score) for _, cost, score in narrower])]
    front = _apart(front)
    while len(front) > rows - 1:
        places = [log2(cost.macs) for _, cost, _ in front]
        gaps = [after - before for before, after in zip(places, places[2:], strict=False)]
        del front[1 + min(range(len(gaps)), key=gaps.__getitem__)]
    full = network.cost(counts_vector(sizes, sizes), batch)
    last = max(scores.get(sizes, 0.0), front[-1][2] + 1e-6 if front else 0.0)
    found = [Row(counts_vector(counts, sizes), cost.macs, cost.peak_bytes, score) for counts, cost, score in front]
    found.append(Row(counts_vector(sizes, sizes), full.macs, full.peak_bytes, last))
    return Table(SCHEMA_VERSION, network.structure, sizes, draw, data, origin, batch, tuple(found))


def _apart(front: Sequence[tuple[Counts, Cost, float]]) -> list[tuple[Counts, Cost, float]]:
    """Return what is left of a front, cheapest first, without those that cost hardly less than the next."""
    kept: list[tuple[Counts, Cost, float]] = []
    for point in reversed(front):
        if not kept or point[1].macs * _HARDLY_MORE <= kept[-1][1].macs:
            kept.append(point)
    return kept[::-1]
