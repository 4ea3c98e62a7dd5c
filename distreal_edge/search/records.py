"""What a search evaluates and what came of it, as records and as trials of Optuna."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

__all__ = [
    "COUNTS",
    "PROPOSED",
    "WORKER",
    "Confirmation",
    "Evaluation",
    "Task",
    "counts_of",
    "evaluation_of",
    "task_of",
    "worker_name",
]

COUNTS: Final = "counts"
"""The key under which a trial says what it kept; below it, what it proposed to keep, and which process is at it."""
PROPOSED: Final = "proposed"
WORKER: Final = "worker"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A vector that was screened: what each group keeps, what that costs, and the full network's losses.

    `losses` has one number for each snapshot and seed, snapshots outermost; `origin` says who proposed the vector.
    """

    number: int
    counts: tuple[int, ...]
    cost: float
    peak_bytes: int
    losses: tuple[float, ...]
    origin: str
    seconds: float
    worker: str

    @property
    def loss(self) -> float:
        """The mean over snapshots and seeds."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True, slots=True)
class Task:
    """One training of a confirmation; no counts stand for training nothing."""

    counts: tuple[int, ...]
    snapshot: int
    seed: int


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What came of one task: the full network's loss after it, and the mean training loss of its mini-batches."""

    task: Task
    loss: float
    own_loss: float
    seconds: float
    worker: str


def evaluation_of(trial: FrozenTrial) -> Evaluation:
    """Return what a finished trial of the screening holds."""
    own = trial.user_attrs
    return Evaluation(
        number=trial.number,
        counts=tuple(own[COUNTS]),
        cost=own["cost"],
        peak_bytes=own["peak_bytes"],
        losses=tuple(own["losses"]),
        origin=own.get("origin", "NSGA-II"),
        seconds=own["seconds"],
        worker=worker_name(trial),
    )


def task_of(trial: FrozenTrial | Trial) -> Task:
    """Return what a trial of the confirmation is to train."""
    counts, snapshot, seed = trial.user_attrs["task"]
    return Task(tuple(counts), snapshot, seed)


def counts_of(trial: FrozenTrial) -> tuple[int, ...] | None:
    """Return the counts that a trial of the screening proposes; None before it has said so."""
    found = trial.user_attrs.get(PROPOSED, trial.user_attrs.get(COUNTS))
    return None if found is None else tuple(found)


def worker_name(trial: FrozenTrial) -> str:
    """Return who is at a trial, or was."""
    worker = trial.user_attrs.get(WORKER, {})
    return f"{worker.get('host', '?')}:{worker.get('pid', '?')}"
