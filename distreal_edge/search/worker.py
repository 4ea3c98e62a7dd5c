"""A worker process: it takes proposals or tasks out of the shared study, trains, and stores what came of it."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from distreal_edge.data import load_dataset
from distreal_edge.errors import DistrealError
from distreal_edge.network import Network
from distreal_edge.search.cost import CostOf
from distreal_edge.search.records import Evaluation, Task
from distreal_edge.search.speed import hold_out, recovered_losses, training_loss
from distreal_edge.search.study import SearchStudy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from distreal_edge.data import Dataset
    from distreal_edge.dropout import Profile
    from distreal_edge.search.settings import SearchSettings
    from distreal_edge.search.speed import HeldIn

__all__ = ["Images", "Job", "Workers", "run_task"]

_LONGEST_RUN_OF_REFUSALS: Final = 1000
"""So many proposals in a row that were all known: there is nothing new left near the front."""


@dataclass(frozen=True, slots=True)
class Images:
    """Where a search's images are: a dataset's name and folder, and how many of its images to take, all if None."""

    name: str
    root: Path | None = None
    most: int | None = None

    def load(self) -> Dataset:
        """Read the training split; raise `DataError`."""
        dataset = load_dataset(self.name, root=self.root, split="train")
        return dataset if self.most is None else dataset.take(range(min(self.most, len(dataset))))


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs: plain data, which another process can be handed."""

    storage: str
    study: str
    settings: SearchSettings
    network: bytes
    images: Images
    profile: Profile | None = None

    def open_study(self, network: Network) -> SearchStudy:
        """Open this process's own connection."""
        return SearchStudy(self.storage, self.study, self.settings, network.plan.sizes)

    def hold_out(self, dataset: Dataset) -> HeldIn:
        """Set the search's validation and calibration images aside."""
        settings = self.settings
        return hold_out(
            dataset,
            validation=settings.validation_images,
            calibration=settings.calibration_images,
            seed=settings.seed,
        )


@dataclass(slots=True)
class Workers:
    """Processes that work on one job until `until_s` of the monotonic clock (None: until the tasks are done).

    Screening goes on beyond that for as long as there is less than a population.
    """

    job: Job
    number: int
    confirm: bool
    until_s: float | None = None
    _processes: list[tuple[BaseProcess, Connection]] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Start them: fresh interpreters, which share nothing with this one."""
        context = multiprocessing.get_context("spawn")
        work = _confirm if self.confirm else _screen
        # They inherit it: whoever starts them decides when they stop, also when somebody presses Ctrl-C in their
        # terminal while they are still being imported.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for number in range(self.number):
                last_words, ours = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(work, self.job, self.until_s, ours), name=f"search-{number + 1}", daemon=True
                )
                process.start()
                ours.close()
                self._processes.append((process, last_words))
        finally:
            signal.signal(signal.SIGINT, handler)
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop what still runs; what is stored stays."""
        for process, _ in self._processes:
            process.terminate()
        for process, last_words in self._processes:
            process.join()
            last_words.close()

    def running(self) -> bool:
        """Return whether any of them is still at work; raise `ChildProcessError` that says how one has failed."""
        for process, last_words in self._processes:
            if process.exitcode not in {None, 0}:
                raise ChildProcessError(_failure(process, last_words))
        return any(process.is_alive() for process, _ in self._processes)


def _failure(process: BaseProcess, last_words: Connection) -> str:
    code = process.exitcode
    assert code is not None
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        hint = "; the system does so when memory runs out: fewer --workers need less" if -code == signal.SIGKILL else ""
        return f"{process.name} was killed by {name}{hint}; the same command goes on from here"
    try:
        return str(last_words.recv())
    except EOFError:
        return f"{process.name} ended with exit code {code}; its own message stands above"


def _work(
    work: Callable[[SearchStudy, Job, float | None], None], job: Job, until_s: float | None, end: Connection
) -> None:
    try:
        with job.open_study(Network.from_bytes(job.network)) as study:
            work(study, job, until_s)
    except DistrealError as error:
        end.send(str(error))
        sys.exit(error.exit_code)


def _screen(study: SearchStudy, job: Job, until_s: float | None) -> None:
    data, snapshots, network = _prepare(study, job)
    cost_of = CostOf(network, job.settings.recipe.batch, job.profile)
    horizon, recipe = job.settings.screening, job.settings.recipe
    refused = 0
    while refused < _LONGEST_RUN_OF_REFUSALS and not _orphaned():
        if until_s is not None and time.monotonic() >= until_s and study.has_a_population():
            break
        trial, counts = study.ask()
        cost, peak_bytes = cost_of(counts)
        if study.is_taken(trial, counts) or (cost < job.settings.cheapest and "origin" not in trial.user_attrs):
            study.refuse(trial)
            refused += 1
            continue
        refused = 0
        began = time.perf_counter()
        losses = tuple(
            training_loss(snapshot, counts, data, recipe, steps=horizon.steps, seed=seed)
            for snapshot in snapshots
            for seed in horizon.seeds
        )
        seconds = time.perf_counter() - began
        study.tell(trial, Evaluation(trial.number, counts, cost, peak_bytes, losses, "", seconds, ""))


def _confirm(study: SearchStudy, job: Job, _until_s: float | None) -> None:
    data, snapshots, _ = _prepare(study, job)
    while not _orphaned() and (taken := study.next_task()) is not None:
        trial, task = taken
        began = time.perf_counter()
        loss, own_loss = run_task(task, snapshots, data, job.settings)
        study.finish(trial, loss, own_loss, time.perf_counter() - began)


def run_task(task: Task, snapshots: Sequence[Network], data: HeldIn, settings: SearchSettings) -> tuple[float, float]:
    """Return what a confirmation's task asks for: the full network's loss, and that of the vector's mini-batches."""
    return recovered_losses(
        snapshots[task.snapshot],
        task.counts,
        data,
        settings.recipe,
        steps=settings.confirmation.steps,
        recovery=settings.recovery,
        seed=task.seed,
    )


def _prepare(study: SearchStudy, job: Job) -> tuple[HeldIn, list[Network], Network]:
    network = Network.from_bytes(job.network)
    return job.hold_out(job.images.load()), study.snapshots(network), network


def _orphaned() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()
