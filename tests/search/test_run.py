from __future__ import annotations

import multiprocessing
import os
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from math import log
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

import distreal_edge as de
from distreal_edge.errors import StateError
from distreal_edge.search import run, worker
from distreal_edge.search.choice import seed_vectors
from distreal_edge.search.records import Evaluation, Task
from distreal_edge.search.run import rival_counts, screening_hypervolume, uniform_counts
from distreal_edge.search.worker import Images, Job, Workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.data import Dataset
    from distreal_edge.network import Network
    from distreal_edge.search.settings import SearchSettings


@pytest.fixture
def job(storage: str, settings_with: Callable[..., SearchSettings], network: Network, tmp_path: Path) -> Job:
    return Job(storage, "one", settings_with(), network.to_bytes(), Images("npz", tmp_path / "nowhere.npz"))


class Done(nullcontext[None]):
    def running(self) -> bool:
        return False


class Unwanted:
    def __init__(self, *_job: object, **_more: object) -> None:
        raise AssertionError


def test_a_command_waits_for_the_tasks_that_others_are_at(
    job: Job, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "Workers", Unwanted)
    monkeypatch.setattr(run, "_POLL_S", 0.05)
    vectors = dict.fromkeys([(), (4, 6), *rival_counts(network, job.settings.cheapest)])
    tasks = [Task(counts, snapshot, seed) for counts in vectors for snapshot in (0, 1) for seed in (101, 102)]
    with job.open_study(network) as study, job.open_study(network) as other:
        other.request(tasks)
        taken = [other.next_task() for _ in tasks]

        def finish() -> None:
            time.sleep(0.5)
            for one in taken:
                assert one is not None
                other.finish(one[0], 1.0, 1.0, 1.0)

        others = threading.Thread(target=finish)
        others.start()
        run._confirm(job, network, study, [(4, 6)], 2, lambda _progress: None, run._Clock(study))
        assert {one.task for one in study.confirmations()} == set(tasks)
        others.join()
        assert study.spent_s() > 0.0


def wait_for(team: Workers) -> None:
    for _ in run._while_running(team):
        pass


def test_a_worker_that_fails_ends_the_search_with_its_own_words(job: Job, capfd: Any) -> None:
    with pytest.raises(StateError, match=r"a worker of the search has failed: dataset npz: .*nowhere\.npz"):
        wait_for(Workers(job, 1, confirm=True))
    assert capfd.readouterr().err == ""


def test_an_error_of_a_worker_that_nobody_expected_stays_to_be_read(job: Job, capfd: Any) -> None:
    unexpected = replace(job, network=None)  # type: ignore[arg-type]
    with pytest.raises(StateError, match="has failed: search-1 ended with exit code 1; its own message stands above"):
        wait_for(Workers(unexpected, 1, confirm=True))
    assert "Traceback" in capfd.readouterr().err


def test_a_worker_that_was_killed_ends_the_search_and_says_by_what(job: Job, capfd: Any) -> None:
    # It waits for ever for images out of this pipe.
    pipe = job.images.root
    assert pipe is not None
    os.mkfifo(pipe)
    team = Workers(job, 1, confirm=True)
    running = run._while_running(team)
    next(running)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    said = "search-1 was killed by SIGKILL; the system does so when memory runs out: fewer --workers need less; the"
    with pytest.raises(StateError, match=said):
        list(running)
    assert capfd.readouterr().err == ""


def test_a_clock_that_is_set_back_prolongs_no_screening(
    job: Job, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    untils: list[float | None] = []

    def noted(_job: Job, _number: int, *, confirm: bool, until_s: float | None = None) -> Any:
        untils.append(until_s)
        return Done()

    monkeypatch.setattr(run, "Workers", noted)
    with job.open_study(network) as study:
        clock = run._Clock(study)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        run._screen(job, network, study, 5.0, 2, lambda _progress: None, clock)
    (until_s,) = untils
    assert until_s is not None
    assert began + 5.0 <= until_s <= time.monotonic() + 5.0


@pytest.mark.parametrize(("budget_s", "enough"), [(0.001, False), (3600.0, True)])
def test_a_budget_that_snapshots_alone_exceed_is_refused_at_once(
    job: Job, network: Network, dataset: Dataset, budget_s: float, enough: bool
) -> None:
    job = replace(job, settings=msgspec.structs.replace(job.settings, snapshots_at=(200, 201)))
    steps: list[float] = []
    with job.open_study(network) as study:

        def make() -> None:
            run._make_snapshots(
                job,
                network,
                study,
                job.hold_out(dataset),
                budget_s,
                threads=1,
                report=lambda progress: steps.append(progress.done),
                clock=run._Clock(study),
            )

        if enough:
            make()
            assert steps[-1] == 201
        else:
            with pytest.raises(
                StateError, match=r"takes some \d+ s here, and more than the budget of 0 s allows; give"
            ):
                make()
            assert steps == []


def test_a_population_is_screened_when_there_is_no_time_at_all(
    job: Job, network: Network, dataset: Dataset, tmp_path: Path
) -> None:
    np.savez(tmp_path / "nowhere.npz", images=dataset.images, labels=dataset.labels)
    with job.open_study(network) as study:
        run._make_snapshots(
            job,
            network,
            study,
            job.hold_out(dataset),
            3600.0,
            threads=1,
            report=lambda _progress: None,
            clock=run._Clock(study),
        )
        study.queue(seed_vectors(network, job.settings.cheapest))
        worker._screen(study, job, time.monotonic() - 1.0)
        assert len(study.evaluations()) == job.settings.population
        worker._screen(study, job, time.monotonic() - 1.0)
        assert len(study.evaluations()) == job.settings.population


def test_more_seconds_confirm_more_vectors_between_few_and_the_most(job: Job) -> None:
    # Two snapshots of two mini-batches took 0.04 s: 0.01 s for each, and a task some 0.1 s.
    evaluations = [Evaluation(0, (4, 6), 1.0, 1, (1.0, 1.0), "full", 0.04, "")]
    numbers = [run._affordable(job.settings, evaluations, seconds, most=64) for seconds in (0.0, 5.0, 20.0, 30.0, 1e6)]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (16, 64)
    assert 20 < numbers[2] <= numbers[3] <= 64
    assert run._affordable(job.settings, evaluations, 0.0, most=16) == 16


def test_guessing_is_worth_nothing_and_knowing_all_of_its_entropy(network: Network) -> None:
    def screened(*losses: float) -> list[Evaluation]:
        return [Evaluation(number, (1, 1), 0.05, 1, (loss,), "", 1.0, "") for number, loss in enumerate(losses)]

    assert screening_hypervolume(screened(log(3)), 3, 0.05) == 0.0
    assert screening_hypervolume(screened(0.0), 3, 0.05) == pytest.approx(log(3))
    assert screening_hypervolume(screened(0.5, 0.4), 3, 0.05) == pytest.approx(log(3) - 0.4)


def test_uniform_vectors_to_compare_with_leave_the_full_network_out(network: Network) -> None:
    found = uniform_counts(network, 0.05)
    assert len(set(found)) == len(found)
    assert network.plan.sizes not in found


def test_uniform_vectors_and_whole_streams_are_confirmed_in_any_case() -> None:
    network = de.zoo.resnet8(image_size=16)
    found = rival_counts(network, 0.05)
    assert {*uniform_counts(network, 0.05)} < {*found}
    streams = network.plan.layout.streams
    assert any(all(counts[group] == network.plan.sizes[group] for group in streams) for counts in found)
