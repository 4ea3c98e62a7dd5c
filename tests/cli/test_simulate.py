from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from distreal_edge import zoo
from distreal_edge.config import load_config
from distreal_edge.simulate import RIVALS, Scenario
from distreal_edge.simulate.folder import open_folder
from distreal_edge.simulate.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.simulate.records import Checkpoint

    Ran = subprocess.CompletedProcess[str]

SOURCES = Path(__file__).resolve().parents[2]
WITHIN_S = 100.0
SCENARIO = """\
name = "tiny"
evaluate_every = 1

[network]
zoo = "resnet8"
in_channels = 1
image_size = 8
classes = 3

[data]
name = "npz"
root = "blobs.npz"
test_images = 30
calibration_images = 16

[devices]
number = 4

[rounds]
number = 3
devices_per_round = 2

[training]
batch = 8
lr = 0.01
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the current folder, with a scenario and its images in it."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 80)
    images = (rng.integers(0, 120, (80, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "blobs.npz", x_train=images, y_train=labels, x_test=images[:30], y_test=labels[:30])
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    return tmp_path


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `distreal-edge simulate` with one process."""
    return subprocess.Popen(
        [sys.executable, "-m", "distreal_edge", "simulate", "tiny.toml", "--processes", "1", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )


def checkpoint(folder: Path, out: str) -> Checkpoint | None:
    with open_folder(folder / out, load_config(folder / "tiny.toml", Scenario)) as opened:
        found = opened.load("ours", 0)
    return None if found is None else msgspec.structs.replace(found, real_s=0.0)


@pytest.mark.slow
@pytest.mark.chaos
def test_killed_again_and_again_it_ends_with_the_same_bits(folder: Path) -> None:
    with begin(folder, "--strategy", "ours", "--out", "undisturbed") as process:
        assert process.wait(WITHIN_S) == 0
    stored = folder / "killed" / "runs" / "ours-0.checkpoint"
    for kills in range(2):
        before = stored.stat().st_mtime_ns if kills else 0
        with begin(folder, "--strategy", "ours", "--out", "killed") as process:
            give_up_s = time.monotonic() + WITHIN_S
            while not (stored.exists() and stored.stat().st_mtime_ns > before):
                assert process.poll() is None
                assert time.monotonic() < give_up_s
                time.sleep(0.001)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    with begin(folder, "--strategy", "ours", "--out", "killed") as process:
        assert process.wait(WITHIN_S) == 0
    assert checkpoint(folder, "killed") == checkpoint(folder, "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_says_that_the_same_command_goes_on(folder: Path, number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("whoever started this has it ignored, as shells do in the background")
    with begin(folder) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"distreal-edge: {len(RIVALS)} runs\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130
    *_, stopped, interrupted = (line for line in said.splitlines() if line)
    assert stopped == "distreal-edge: stopped; the same command goes on from here"
    assert interrupted == "distreal-edge: interrupted"


def test_it_shows_a_table_and_writes_results_and_pictures(folder: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("simulate", "tiny.toml", "--processes", "1", "--strategy", "small", "--strategy", "ours")
    assert ran.returncode == 0, ran.stderr
    begun, *lines = ran.stderr.splitlines()
    assert begun == "distreal-edge: 2 runs"
    assert len(lines) == 6
    assert all("seed 0: round " in line for line in lines)
    assert "ours " in ran.stdout
    assert "tiny/results.json has all, with pictures beside it." in " ".join(ran.stdout.split())
    results = msgspec.json.decode((folder / "tiny" / "results.json").read_bytes(), type=Results)
    assert [run.strategy for run in results.runs] == ["small", "ours"]
    for name in ("accuracy-over-time", "accuracy-over-rounds", "rows"):
        assert (folder / "tiny" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    again = cli("simulate", "tiny.toml", "--strategy", "small", "--strategy", "ours", "--json")
    assert again.stderr == ""
    assert msgspec.json.decode(again.stdout, type=Results) == results


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("number = 4", "numbr = 4", "tiny.toml:17: unknown key devices.numbr; did you mean 'number'?"),
        ("evaluate_every = 1", 'strategies = ["our"]', "tiny.toml:2: strategies: no strategy is called 'our'; did you"),
        ("lr = 0.01", 'lr = 0.01\naverage = "median"', "tiny.toml:23: training: leave out average and hostile_share"),
        (
            "classes = 3",
            'classes = 3\nfile = "a"',
            "tiny.toml:9: network.file: give either a file or a name in the zoo",
        ),
        ('root = "blobs.npz"', 'root = "none.npz"', "tiny.toml:10: data: "),
        (
            "[rounds]",
            '[availability]\nkind = "recorded"\ntraces = "nowhere"\n\n[rounds]',
            "tiny.toml:21: availability.traces: availability.traces: nowhere has no trace in it",
        ),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(
    folder: Path, cli: Callable[..., Ran], before: str, after: str, message: str
) -> None:
    (folder / "tiny.toml").write_text(SCENARIO.replace(before, after))
    ran = cli("simulate", "tiny.toml", "--processes", "1")
    assert ran.returncode in {2, 4}
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"distreal-edge: {message}")


def test_an_unknown_strategy_is_wrong_usage(folder: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("simulate", "tiny.toml", "--strategy", "distrael")
    assert ran.returncode == 2
    assert ran.stderr.startswith(
        "distreal-edge: --strategy: no strategy is called 'distrael'; did you mean 'distreal'?"
    )


def test_an_address_needs_a_cluster(folder: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("simulate", "tiny.toml", "--address", "tcp://127.0.0.1:1")
    assert (ran.returncode, ran.stderr) == (
        2,
        "distreal-edge: --address goes with --backend dask or ray, and they with it\n",
    )


def test_one_process_needs_no_joblib(folder: Path, cli_without: Callable[..., Ran]) -> None:
    ran = cli_without("joblib", "simulate", "tiny.toml", "--processes", "1", "--strategy", "ours")
    assert ran.returncode == 0, ran.stderr


def test_several_processes_without_joblib_say_what_to_install(folder: Path, cli_without: Callable[..., Ran]) -> None:
    ran = cli_without("joblib", "simulate", "tiny.toml", "--processes", "2", "--strategy", "ours")
    assert ran.returncode == 2
    assert "pip install 'distreal-edge[simulate]', or give --processes 1" in ran.stderr


@pytest.mark.parametrize(
    "path", sorted((SOURCES / "benchmarks" / "scenarios").glob("*.toml")), ids=lambda path: path.stem
)
def test_shipped_scenarios_are_sound(path: Path) -> None:
    scenario = load_config(path, Scenario)
    assert scenario.name == path.stem
    assert scenario.network.zoo in zoo.NETWORKS
    assert scenario.devices.number == 100
    assert scenario.rounds.devices_per_round == 10
