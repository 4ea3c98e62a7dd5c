from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import msgspec
import pytest

from distreal_edge.config import load_config
from distreal_edge.errors import ConfigError
from distreal_edge.simulate import Federation, Scenario
from distreal_edge.simulate.folder import open_folder
from distreal_edge.simulate.pool import Pool, open_pool
from distreal_edge.simulate.results import results_of
from distreal_edge.simulate.run import Job, choose_strategies, jobs_of, run_jobs, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.simulate.records import Checkpoint

STRATEGIES = ("ours", "full-late-dropped")


@pytest.fixture
def scenario(scenario_file: Callable[..., Path]) -> Scenario:
    return load_config(scenario_file(), Scenario)


def run_all(
    scenario: Scenario, folder_path: Path, pool: Pool, *, strategies: tuple[str, ...] = STRATEGIES, seeds: int = 1
) -> list[Job]:
    with open_folder(folder_path, scenario) as folder:
        return run_jobs(jobs_of(scenario, strategies, seeds, folder), folder, pool, lambda _job: None)


def outcome(jobs: list[Job]) -> list[Checkpoint]:
    """Return all that must not depend on where and how it was computed."""
    return [msgspec.structs.replace(job.checkpoint, real_s=0.0) for job in jobs if job.checkpoint is not None]


def test_stopping_after_every_score_changes_no_bit(scenario: Scenario, tmp_path: Path) -> None:
    jobs = run_all(scenario, tmp_path / "out", Pool(1))
    for job, strategy in zip(jobs, STRATEGIES, strict=True):
        undisturbed = Federation(scenario, strategy)
        records = tuple(undisturbed.rounds(lambda function, tasks: [function(task) for task in tasks]))
        assert job.checkpoint is not None
        assert job.checkpoint.records == records
        assert job.checkpoint.model == undisturbed.network.to_bytes()


def test_what_is_done_is_not_computed_again(scenario: Scenario, tmp_path: Path) -> None:
    jobs = run_all(scenario, tmp_path / "out", Pool(1), strategies=("ours",))

    class Unwanted(Pool):
        def as_they_come(self, *_: object) -> None:  # type: ignore[override]
            raise AssertionError

    again = run_all(scenario, tmp_path / "out", Unwanted(1), strategies=("ours",))
    assert [job.checkpoint for job in again] == [job.checkpoint for job in jobs]


def test_a_damaged_checkpoint_is_put_aside_and_its_run_begins_again(
    scenario: Scenario, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = run_all(scenario, tmp_path / "out", Pool(1), strategies=("ours",))
    file = tmp_path / "out" / "runs" / "ours-0.checkpoint"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    again = run_all(scenario, tmp_path / "out", Pool(1), strategies=("ours",))
    assert outcome(again) == outcome(jobs)
    (moved,) = (tmp_path / "out" / "quarantine").iterdir()
    assert moved.read_bytes() == bytes(data)
    assert "is damaged and was moved to" in caplog.text


def test_another_scenario_is_refused_with_what_differs(scenario: Scenario, tmp_path: Path) -> None:
    with open_folder(tmp_path / "out", scenario):
        pass
    other = msgspec.structs.replace(scenario, training=msgspec.structs.replace(scenario.training, lr=0.1))
    with (
        pytest.raises(ConfigError, match=r"another scenario: training.lr is 0.05 there, and 0.1 here; give the name"),
        open_folder(tmp_path / "out", other),
    ):
        pass


def test_a_network_file_that_has_changed_makes_another_scenario(scenario: Scenario, tmp_path: Path) -> None:
    with open_folder(tmp_path / "out", scenario):
        pass
    (tmp_path / "tiny.safetensors").write_bytes(b"other")
    with (
        pytest.raises(ConfigError, match=r"another scenario: files.tiny.safetensors is "),
        open_folder(tmp_path / "out", scenario),
    ):
        pass


def test_a_folder_of_something_else_is_left_alone(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").touch()
    with pytest.raises(ConfigError, match="holds something else"), open_folder(tmp_path / "out", scenario):
        pass


def test_more_strategies_may_follow_in_the_same_folder(scenario: Scenario, tmp_path: Path) -> None:
    with open_folder(tmp_path / "out", msgspec.structs.replace(scenario, strategies=("ours",))):
        pass
    with open_folder(tmp_path / "out", scenario):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [("ours",), STRATEGIES])
def test_two_processes_bring_what_one_brings(scenario: Scenario, tmp_path: Path, strategies: tuple[str, ...]) -> None:
    alone = run_all(scenario, tmp_path / "one", Pool(1), strategies=strategies)
    with open_pool(2, "loky", None) as pool:
        together = run_all(scenario, tmp_path / "two", pool, strategies=strategies)
    assert outcome(together) == outcome(alone)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs dask's distributed")
@pytest.mark.filterwarnings("default")  # dask's own
def test_a_dask_cluster_brings_what_one_process_brings(scenario: Scenario, tmp_path: Path) -> None:
    import distributed  # noqa: PLC0415

    alone = run_all(scenario, tmp_path / "one", Pool(1))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        open_pool(None, "dask", cluster.scheduler_address) as pool,
    ):
        assert pool.processes == 2
        together = run_all(scenario, tmp_path / "two", pool)
    assert outcome(together) == outcome(alone)


def test_seeds_differ_in_devices_and_draws(scenario: Scenario, tmp_path: Path) -> None:
    first, second = outcome(run_all(scenario, tmp_path / "out", Pool(1), strategies=("ours",), seeds=2))
    assert first.records[0].training_loss != second.records[0].training_loss
    assert {path.name for path in (tmp_path / "out" / "runs").iterdir()} == {"ours-0.checkpoint", "ours-1.checkpoint"}


@pytest.mark.parametrize(
    ("runs", "processes", "devices", "expected"),
    [(13, 2, 10, True), (2, 2, 10, True), (1, 2, 10, False), (13, 64, 10, True), (5, 64, 10, False), (1, 1, 10, True)],
)
def test_runs_go_side_by_side_when_they_keep_more_than_half_of_the_processes_busy(
    runs: int, processes: int, devices: int, *, expected: bool
) -> None:
    assert side_by_side(runs, processes, devices) is expected


def test_an_unknown_strategy_is_named_with_the_nearest(scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match=r"no strategy is called 'heterofi'; did you mean 'heterofl'\? choose among"):
        choose_strategies(["heterofi"], scenario)


def test_figures_add_up(scenario: Scenario, tmp_path: Path) -> None:
    results = results_of(scenario, run_all(scenario, tmp_path / "out", Pool(1)))
    assert [strategy.name for strategy in results.strategies] == list(STRATEGIES)
    for run in results.runs:
        shares = run.shares
        assert shares.download + shares.training + shares.upload + shares.idle == pytest.approx(1.0)
        assert min(shares.download, shares.training, shares.upload, shares.idle) >= 0.0
        accuracies = [record.score.accuracy for record in run.rounds if record.score and record.score.accuracy]
        assert run.final_accuracy == pytest.approx(sum(accuracies) / 3)
        for reached in run.reached:
            upto = run.rounds[: reached.round]
            assert reached.macs == sum(record.macs for record in upto)
            assert upto[-1].score is not None
            assert (upto[-1].score.accuracy or 0.0) >= reached.accuracy
            assert all(((record.score and record.score.accuracy) or 0.0) < reached.accuracy for record in upto[:-1])
    late = {strategy.name: run.late for strategy, run in zip(results.strategies, results.runs, strict=True)}
    assert late["ours"] == 0


def test_recorded_traces_drive_devices(scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "board.csv").write_text("seconds,cores\n0,1.0\n20,0.25\n40,0.5\n")
    file = scenario_file(kind='kind = "recorded"\ntraces = "traces"')
    scenario = load_config(file, Scenario)
    (job,) = run_all(scenario, tmp_path / "out", Pool(1), strategies=("ours",))
    assert job.finished
    assert job.checkpoint is not None
    assert sum(record.answered for record in job.checkpoint.records) == 9
