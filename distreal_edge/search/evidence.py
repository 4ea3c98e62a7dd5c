"""What a table rests on: every vector, every seed, the settings and the versions, in one file."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from distreal_edge import _native
from distreal_edge.bench import describe_machine
from distreal_edge.dropout import filter_counts
from distreal_edge.durable import write_durably
from distreal_edge.errors import StateError, TableError
from distreal_edge.search.choice import confirmed_vectors
from distreal_edge.search.front import hypervolume, pareto_front
from distreal_edge.search.run import screening_hypervolume, uniform_counts
from distreal_edge.search.settings import SearchSettings  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from distreal_edge.dropout import Table
    from distreal_edge.network import Network
    from distreal_edge.search.records import Confirmation, Evaluation

__all__ = ["EVIDENCE_SCHEMA_VERSION", "ConfirmedVector", "Evidence", "ScreenedVector", "gather_evidence"]

EVIDENCE_SCHEMA_VERSION: Final = 1
Counts = tuple[int, ...]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ScreenedVector(_Part, frozen=True):
    """One screening: the filters that each group keeps, the share of the full cost, and the mean training losses.

    `losses` in nats, one for each snapshot and seed of the settings' screening, snapshots outermost; `hypervolume` is
    that of all screenings up to this one.
    """

    number: int
    origin: str
    counts: Counts
    cost: float
    peak_bytes: int
    losses: tuple[float, ...]
    seconds: float
    worker: str
    hypervolume: float


class ConfirmedVector(_Part, frozen=True):
    """One confirmed vector, with one figure in nats for each snapshot and seed, snapshots outermost.

    `falls`: by how much the full network's loss was lower than if nothing had been trained; `own_losses`: the mean
    training losses of the vector's mini-batches. `score` is what was made of them; `row` is its row in the table, None
    for those that the table left out.
    """

    counts: Counts
    cost: float
    score: float
    falls: tuple[float, ...]
    own_losses: tuple[float, ...]
    uniform: bool
    row: int | None


class Evidence(_Part, frozen=True):
    """Everything that a table of one search rests on.

    `hypervolumes` are mean scores over budgets from `settings.cheapest` to the full network, evenly spread over their
    logarithm, in nats: of all confirmed vectors and of the uniform ones, and of the screened vectors that the search
    began with, and of the uniform ones among them.
    """

    schema: Literal[1]
    settings: SearchSettings
    versions: dict[str, str]
    machines: tuple[str, ...]
    instruction_set: str
    table: Annotated[str, msgspec.Meta(description="The SHA-256 of the table.")]
    sizes: Counts
    groups: tuple[str, ...]
    nothing: tuple[float, ...]
    hypervolumes: dict[str, float]
    screened: tuple[ScreenedVector, ...]
    confirmed: tuple[ConfirmedVector, ...]

    def save(self, path: Path) -> None:
        """Write the evidence as a JSON file, whole or not at all; raise `TableError` when that cannot be done."""
        try:
            write_durably(path, msgspec.json.format(msgspec.json.encode(self), indent=0))
        except StateError as error:
            raise TableError(str(error)) from None


def gather_evidence(
    network: Network,
    settings: SearchSettings,
    table: Table,
    costs: Mapping[Counts, float],
    scores: Mapping[Counts, float],
    evaluations: Sequence[Evaluation],
    confirmations: Sequence[Confirmation],
) -> Evidence:
    """Put together what a search has found; `costs`, shares of the full cost, and `scores` of all confirmed vectors."""
    sizes = network.plan.sizes
    rows = {filter_counts(row.vector, sizes): number for number, row in enumerate(table.rows)}
    uniform = {*uniform_counts(network, settings.cheapest), sizes}
    confirmed = confirmed_vectors(confirmations)
    points = {counts: (costs[counts], score) for counts, score in scores.items()}
    nothing = {
        (confirmation.task.snapshot, confirmation.task.seed): confirmation.loss
        for confirmation in confirmations
        if not confirmation.task.counts
    }

    def screened_alone(belongs: Callable[[Evaluation], bool]) -> float:
        own = [evaluation for evaluation in evaluations if belongs(evaluation)]
        return screening_hypervolume(own, network.plan.classes, settings.cheapest)

    return Evidence(
        schema=EVIDENCE_SCHEMA_VERSION,
        settings=settings,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("distreal-edge", "numpy", "optuna")},
        },
        machines=tuple(sorted({evaluation.worker.rpartition(":")[0] for evaluation in evaluations})),
        instruction_set=f"{_native.instruction_set()}, {describe_machine().processor}",
        table=table.digest,
        sizes=sizes,
        groups=tuple(group.name for group in network.groups),
        nothing=tuple(nothing[key] for key in sorted(nothing)),
        hypervolumes={
            "found": hypervolume(list(points.values()), cheapest=settings.cheapest),
            "uniform": hypervolume(
                [point for counts, point in points.items() if counts in uniform], cheapest=settings.cheapest
            ),
            "screened at the start": screened_alone(lambda one: one.origin != "NSGA-II"),
            "screened uniform": screened_alone(lambda one: one.counts in uniform or one.origin == "uniform"),
        },
        screened=_screened(evaluations, network.plan.classes, settings.cheapest),
        confirmed=tuple(
            ConfirmedVector(
                counts, costs[counts], scores[counts], own.falls, own.own_losses, counts in uniform, rows.get(counts)
            )
            for counts, own in sorted(confirmed.items(), key=lambda item: costs[item[0]])
        ),
    )


def _screened(evaluations: Sequence[Evaluation], classes: int, cheapest: float) -> tuple[ScreenedVector, ...]:
    found: list[ScreenedVector] = []
    front: list[Evaluation] = []
    for one in evaluations:
        front.append(one)
        front = [front[position] for position in pareto_front([(other.cost, -other.loss) for other in front])]
        reached = screening_hypervolume(front, classes, cheapest)
        found.append(
            ScreenedVector(
                one.number,
                one.origin,
                one.counts,
                one.cost,
                one.peak_bytes,
                one.losses,
                one.seconds,
                one.worker,
                reached,
            )
        )
    return tuple(found)
