"""What comes of a simulation: every record of every run, and what they add up to."""

from __future__ import annotations

import itertools
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Final

import msgspec

from distreal_edge.bench import describe_machine
from distreal_edge.simulate.folder import versions
from distreal_edge.simulate.records import RoundRecord  # noqa: TC001 - msgspec reads the annotations
from distreal_edge.simulate.rivals import RIVALS
from distreal_edge.simulate.scenario import Scenario  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distreal_edge.simulate.run import Job

__all__ = ["MILESTONES", "Machine", "Reached", "Results", "Run", "Shares", "Strategy", "results_of"]

MILESTONES: Final = (0.5, 0.6, 0.7)
_LAST: Final = 3
"""So many scores are averaged into the final one: one alone is noisy."""


class Shares(msgspec.Struct, frozen=True):
    """What became of the time of devices that were selected, from a round's opening to its closing; 1 in all."""

    download: float
    training: float
    upload: float
    idle: float


class Reached(msgspec.Struct, frozen=True):
    """When a model first had this accuracy: after which round, in seconds of virtual time, and MACs of all updates."""

    accuracy: float
    round: int
    seconds: float
    macs: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A strategy's run with one seed.

    `final_accuracy` is the mean of the last three scores, None when there is none or the model has diverged by then.
    `macs`, `images` and `mini_batches` are those of updates that counted. `real_s` is how long this took here.
    """

    strategy: str
    seed: int
    final_accuracy: float | None
    reached: tuple[Reached, ...]
    shares: Shares
    answered: int
    late: int
    macs: int
    images: int
    mini_batches: int
    upload_bytes: int
    virtual_s: float
    real_s: float
    virtual_s_per_real_s: float
    images_per_real_s: float
    row_shares: tuple[float, ...]
    rounds: tuple[RoundRecord, ...]


class Strategy(msgspec.Struct, frozen=True):
    """A strategy over all its seeds: mean and standard deviation of the final accuracy.

    Both are None when a run has diverged; the deviation also with one seed.
    """

    name: str
    title: str
    seeds: int
    final_accuracy: float | None
    deviation: float | None


class Machine(msgspec.Struct, frozen=True):
    """Where it was computed, or from where."""

    processor: str
    cores: int


class Results(msgspec.Struct, frozen=True):
    """The whole of `results.json`."""

    scenario: Scenario
    versions: dict[str, str]
    machine: Machine
    strategies: tuple[Strategy, ...]
    runs: tuple[Run, ...]


def results_of(scenario: Scenario, jobs: Sequence[Job]) -> Results:
    """Add up what finished jobs have recorded."""
    runs = tuple(_run(job) for job in jobs)
    here = describe_machine()
    return Results(
        scenario,
        versions(),
        Machine(here.processor, here.cores),
        tuple(
            _strategy(name, [run for run in runs if run.strategy == name])
            for name in dict.fromkeys(run.strategy for run in runs)
        ),
        runs,
    )


def _run(job: Job) -> Run:
    checkpoint = job.checkpoint
    assert checkpoint is not None
    records = checkpoint.records
    images, real_s = sum(record.images for record in records), max(checkpoint.real_s, 1e-9)
    scores = [record.score.accuracy for record in records if record.score is not None][-_LAST:]
    known = [score for score in scores if score is not None]
    return Run(
        strategy=job.strategy,
        seed=job.scenario.seed,
        final_accuracy=fmean(known) if known and len(known) == len(scores) else None,
        reached=_reached(records),
        shares=_shares(records),
        answered=sum(record.answered for record in records),
        late=sum(record.late for record in records),
        macs=sum(record.macs for record in records),
        images=images,
        mini_batches=sum(record.mini_batches for record in records),
        upload_bytes=sum(record.upload_bytes for record in records),
        virtual_s=checkpoint.now_s,
        real_s=checkpoint.real_s,
        virtual_s_per_real_s=checkpoint.now_s / real_s,
        images_per_real_s=images / real_s,
        row_shares=checkpoint.row_shares,
        rounds=records,
    )


def _reached(records: Sequence[RoundRecord]) -> tuple[Reached, ...]:
    found = []
    spent = list(itertools.accumulate(record.macs for record in records))
    for milestone in MILESTONES:
        for record, macs in zip(records, spent, strict=True):
            if record.score is not None and (record.score.accuracy or 0.0) >= milestone:
                found.append(Reached(milestone, record.round, record.closed_s, macs))
                break
    return tuple(found)


def _shares(records: Sequence[RoundRecord]) -> Shares:
    download_s = sum(record.downloads_s for record in records)
    training_s = sum(record.busy_s for record in records)
    upload_s = sum(record.uploads_s for record in records)
    # Late updates are on their way beyond the closing.
    all_s = sum(record.selected * (record.closed_s - record.opened_s) for record in records)
    all_s = max(all_s, download_s + training_s + upload_s, 1e-9)
    idle_s = all_s - download_s - training_s - upload_s
    return Shares(download_s / all_s, training_s / all_s, upload_s / all_s, idle_s / all_s)


def _strategy(name: str, runs: Sequence[Run]) -> Strategy:
    finals = [run.final_accuracy for run in runs if run.final_accuracy is not None]
    whole = len(finals) == len(runs)
    return Strategy(
        name,
        RIVALS[name].title,
        len(runs),
        fmean(finals) if whole else None,
        stdev(finals) if whole and len(finals) > 1 else None,
    )
