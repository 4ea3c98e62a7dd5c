"""One command's part in a search: snapshots, screening, confirmation, and the table that comes of it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Final, Literal

from distreal_edge.errors import StateError
from distreal_edge.search.choice import choose_candidates, seed_vectors
from distreal_edge.search.families import MEMBERS, family_members
from distreal_edge.search.front import hypervolume
from distreal_edge.search.records import Task
from distreal_edge.search.speed import take_snapshots
from distreal_edge.search.worker import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distreal_edge.network import Network
    from distreal_edge.search.records import Evaluation
    from distreal_edge.search.settings import SearchSettings
    from distreal_edge.search.speed import HeldIn
    from distreal_edge.search.study import SearchStudy
    from distreal_edge.search.worker import Job

__all__ = ["Progress", "rival_counts", "run_search", "screening_hypervolume", "uniform_counts"]

Counts = tuple[int, ...]

_SCREENING_SHARE: Final = 0.4
"""Of the budget; the rest confirms."""
_RIVALS: Final = ("uniform", "inner")
"""Families that are confirmed at several costs whatever screening says of them: what a table must not be beaten by."""
_FEWEST_CANDIDATES: Final = 16
_FORWARD_SHARE: Final = 0.4
"""What a pass over images without training takes, of what training on them takes."""
_EARLY: Final = 0.1
"""A budget that snapshots alone exceed is refused within this share of their training, and not when it is done."""
_POLL_S: Final = 0.1
_REPORT_S: Final = 2.0
"""Looking through the storage takes time that the workers could use."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search is: `done` of `total` (mini-batches, seconds of screening, or tasks), and the vectors so far.

    `hypervolume` is that of the screening, in nats: see `screening_hypervolume`. `left_s` is None while nobody knows.
    """

    phase: Literal["snapshots", "screening", "confirmation"]
    done: float
    total: float
    vectors: int = 0
    hypervolume: float = 0.0
    left_s: float | None = None


def run_search(
    job: Job,
    network: Network,
    study: SearchStudy,
    data: HeldIn,
    *,
    budget_s: float,
    workers: int,
    candidates: int,
    report: Callable[[Progress], None],
) -> None:
    """Screen and confirm within the budget, counting what this machine has spent on this search before.

    Whenever it is killed, the next call goes on; what was evaluated is never evaluated again. `data` is what the job
    sets aside of its images. A population is screened whatever the budget. Raises
    `StateError` when a worker fails, or the budget is too short for the snapshots.
    """
    clock = _Clock(study)
    _make_snapshots(job, network, study, data, budget_s, threads=workers, report=report, clock=clock)
    study.queue(seed_vectors(network, job.settings.cheapest))
    screening_s = budget_s * _SCREENING_SHARE - clock.spent_s()
    if screening_s > 0.0 or not study.has_a_population():
        _screen(job, network, study, max(0.0, screening_s), workers, report, clock)
    evaluations = study.evaluations()

    def choose() -> list[Counts]:
        number = _affordable(job.settings, evaluations, (budget_s - clock.spent_s()) * workers, most=candidates)
        return choose_candidates(evaluations, number, job.settings.cheapest)

    # As long as nothing more is screened, whoever goes on confirms the same vectors, whatever is left of its budget.
    chosen = study.choice(f"candidates/{len(evaluations)}/{candidates}/{budget_s:.0f}", choose)
    _confirm(job, network, study, chosen, workers, report, clock)


def uniform_counts(network: Network, cheapest: float) -> list[Counts]:
    """Return the uniform vectors that a front is compared with, cheapest first, the full network left out."""
    return list(dict.fromkeys(family_members(network, "uniform", cheapest)))


def rival_counts(network: Network, cheapest: float) -> list[Counts]:
    """Return the vectors that are confirmed whatever was found: uniform ones, and those that keep streams."""
    return list(dict.fromkeys(counts for family in _RIVALS for counts in family_members(network, family, cheapest)))


def screening_hypervolume(evaluations: Sequence[Evaluation], classes: int, cheapest: float) -> float:
    """Return the hypervolume of screened vectors: the mean over budgets of what is learned beyond guessing, in nats."""
    points = [(evaluation.cost, log(classes) - evaluation.loss) for evaluation in evaluations]
    return hypervolume(points, cheapest=cheapest)


class _Clock:
    # Counts the seconds of this run into the study, so that a search that was killed keeps to its budget.
    def __init__(self, study: SearchStudy) -> None:
        self._study = study
        self._run = uuid.uuid4().hex
        self._began_s = time.time()
        self._began = time.monotonic()

    def spent_s(self) -> float:
        self._study.spend(self._run, self._began_s, self._began_s + time.monotonic() - self._began)
        return self._study.spent_s()


def _make_snapshots(
    job: Job,
    network: Network,
    study: SearchStudy,
    data: HeldIn,
    budget_s: float,
    *,
    threads: int,
    report: Callable[[Progress], None],
    clock: _Clock,
) -> None:
    settings = job.settings
    total = max(settings.snapshots_at)

    def make(alive: Callable[[], None]) -> tuple[Network, ...]:
        began = time.monotonic()

        def done(step: int) -> None:
            if step % 20 == 0 or step == total:
                alive()
                left_s = (time.monotonic() - began) / step * (total - step)
                if clock.spent_s() + left_s > budget_s and step <= _EARLY * total:
                    raise StateError(
                        f"training up to the last snapshot takes some {left_s:.0f} s here, and more than the budget of "
                        f"{budget_s:.0f} s allows; give the search more time"
                    )
                report(Progress("snapshots", step, total, left_s=left_s))

        return take_snapshots(
            network, data, settings.recipe, settings.snapshots_at, seed=settings.seed, threads=threads, done=done
        )

    study.make_snapshots(network, make)


def _screen(
    job: Job,
    network: Network,
    study: SearchStudy,
    seconds: float,
    workers: int,
    report: Callable[[Progress], None],
    clock: _Clock,
) -> None:
    began = time.monotonic()
    team = Workers(job, workers, confirm=False, until_s=time.monotonic() + seconds)
    for _ in _while_running(team):
        clock.spent_s()
        study.release_dead()
        passed_s = min(seconds, time.monotonic() - began)
        evaluations = study.evaluations()
        reached = screening_hypervolume(evaluations, network.plan.classes, job.settings.cheapest)
        report(Progress("screening", passed_s, seconds, len(evaluations), reached, seconds - passed_s))


def _affordable(settings: SearchSettings, evaluations: Sequence[Evaluation], core_s: float, *, most: int) -> int:
    # How many vectors can be confirmed in so many seconds of one core, judged by what screening took.
    per_screening = len(settings.snapshots_at) * len(settings.screening.seeds) * settings.screening.steps
    step_s = sum(evaluation.seconds for evaluation in evaluations) / len(evaluations) / per_screening
    full_s = max(evaluation.seconds for evaluation in evaluations) / per_screening
    forward = (settings.validation_images + settings.calibration_images) / settings.recipe.batch * _FORWARD_SHARE
    task_s = settings.confirmation.steps * step_s + (settings.recovery + forward) * full_s
    vector_s = task_s * len(settings.snapshots_at) * len(settings.confirmation.seeds)
    affordable = int(core_s / vector_s) - len(_RIVALS) * MEMBERS - 1
    return max(min(_FEWEST_CANDIDATES, most), min(most, affordable))


def _confirm(
    job: Job,
    network: Network,
    study: SearchStudy,
    candidates: Sequence[Counts],
    workers: int,
    report: Callable[[Progress], None],
    clock: _Clock,
) -> None:
    settings = job.settings
    vectors = dict.fromkeys([(), *candidates, *rival_counts(network, settings.cheapest)])
    # Seeds outermost: what is killed half-way has some figure for every vector.
    tasks = [
        Task(counts, snapshot, seed)
        for seed in settings.confirmation.seeds
        for snapshot in range(len(settings.snapshots_at))
        for counts in vectors
    ]
    wanted = set(tasks)
    evaluations = study.evaluations()
    reached = screening_hypervolume(evaluations, network.plan.classes, settings.cheapest)
    began = time.monotonic()
    before: int | None = None
    while missing := wanted - {confirmation.task for confirmation in study.confirmations()}:
        study.request([task for task in tasks if task in missing])
        if not study.waiting_tasks():  # others are at the rest
            clock.spent_s()
            time.sleep(_REPORT_S / 4.0)
            continue
        for _ in _while_running(Workers(job, min(workers, len(missing)), confirm=True)):
            clock.spent_s()
            done = sum(confirmation.task in wanted for confirmation in study.confirmations())
            before = done if before is None else before
            passed_s = time.monotonic() - began
            left_s = passed_s / (done - before) * (len(tasks) - done) if done > before else None
            report(Progress("confirmation", done, len(tasks), len(evaluations), reached, left_s))


def _while_running(team: Workers) -> Iterator[None]:
    with team:
        due_s = 0.0
        try:
            while team.running():
                if time.monotonic() >= due_s:
                    yield
                    due_s = time.monotonic() + _REPORT_S
                time.sleep(_POLL_S)
        except ChildProcessError as error:
            raise StateError(f"a worker of the search has failed: {error}") from None
