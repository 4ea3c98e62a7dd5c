"""Strategies and seeds of one scenario, each to its end, on as many processes as there are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from distreal_edge.config.fields import meant
from distreal_edge.errors import ConfigError
from distreal_edge.simulate.asynchronous import federation_of
from distreal_edge.simulate.rivals import RIVALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distreal_edge.simulate.federation import Runner
    from distreal_edge.simulate.folder import Folder
    from distreal_edge.simulate.pool import Pool
    from distreal_edge.simulate.records import Checkpoint
    from distreal_edge.simulate.scenario import Scenario

__all__ = ["Job", "advance", "choose_strategies", "jobs_of", "run_jobs"]

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Job:
    """A strategy's run with one seed, and where it stands: None before it began."""

    scenario: Scenario
    strategy: str
    checkpoint: Checkpoint | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.checkpoint is not None and self.checkpoint.finished

    @property
    def done(self) -> int:
        """How many rounds are closed."""
        return 0 if self.checkpoint is None else self.checkpoint.done


def choose_strategies(named: Sequence[str], scenario: Scenario) -> tuple[str, ...]:
    """Return the strategies that were named, else the scenario's, else all; raise `ConfigError` for an unknown one."""
    for name in named:
        if name not in RIVALS:
            raise ConfigError(
                f"--strategy: no strategy is called {name!r}; {meant(name, RIVALS)}choose among {', '.join(RIVALS)}"
            )
    return tuple(dict.fromkeys(named or scenario.strategies or RIVALS))


def jobs_of(scenario: Scenario, strategies: Sequence[str], seeds: int, folder: Folder) -> list[Job]:
    """Return every strategy's runs with `seeds` seeds from the scenario's on, and where each stands in the folder."""
    return [
        Job(_with_seed(scenario, number), strategy, folder.load(strategy, scenario.seed + number))
        for number in range(seeds)
        for strategy in strategies
    ]


def run_jobs(jobs: Sequence[Job], folder: Folder, pool: Pool, report: Callable[[Job], None]) -> list[Job]:
    """Run all jobs to their ends; return them as they then are, in order.

    All go on by one scored model, then by the next: what was killed has brought every strategy about as far. Each is
    stored, and reported, as soon as it comes.
    """
    now = list(jobs)
    while waiting := [number for number, job in enumerate(now) if not job.finished]:
        # The longest first, so that none is waited for at the end.
        waiting.sort(key=lambda number: -_seconds_per_round(now[number]))
        for position, checkpoint in _go_on([now[number] for number in waiting], pool):
            number = waiting[position]
            now[number] = Job(now[number].scenario, now[number].strategy, checkpoint)
            folder.keep(now[number].strategy, now[number].scenario.seed, checkpoint)
            report(now[number])
    return now


def advance(job: Job, run: Runner | None = None) -> Checkpoint:
    """Run a federation until its next model is scored, or to its end; return where it then stands.

    One without rounds runs to its end: somebody is training whenever a model is scored.
    """
    began = time.monotonic()
    federation = federation_of(job.scenario, job.strategy, job.checkpoint)
    for record in federation.rounds(run or _one_by_one):
        if record.score is not None and job.scenario.asynchronous is None:
            break
    before_s = 0.0 if job.checkpoint is None else job.checkpoint.real_s
    return msgspec.structs.replace(federation.checkpoint(), real_s=before_s + time.monotonic() - began)


def side_by_side(runs: int, processes: int, devices: int | None) -> bool:
    """Decide whether runs have a process each; else one comes after the other, each with a round's devices in parallel.

    A process that has a run to itself sends nothing and waits for nobody. But when runs are so few that they keep no
    more than half of the processes busy that a round could use, the other way is sooner done.
    """
    useful = processes if devices is None else min(processes, devices)
    return 2 * runs > useful


def _go_on(jobs: Sequence[Job], pool: Pool) -> Iterator[tuple[int, Checkpoint]]:
    if side_by_side(len(jobs), pool.processes, jobs[0].scenario.rounds.devices_per_round):
        yield from pool.as_they_come(advance, jobs)
    else:
        yield from ((number, advance(job, pool.map)) for number, job in enumerate(jobs))


def _one_by_one(function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
    return [function(task) for task in tasks]


def _with_seed(scenario: Scenario, number: int) -> Scenario:
    """Return the scenario with the seed so many further on: of shards, traces, draws, and of fresh weights."""
    network = scenario.network
    if network.file is None:
        network = msgspec.structs.replace(network, seed=network.seed + number)
    return msgspec.structs.replace(scenario, seed=scenario.seed + number, network=network)


def _seconds_per_round(job: Job) -> float:
    return 0.0 if job.checkpoint is None else job.checkpoint.real_s / max(1, job.checkpoint.done)
