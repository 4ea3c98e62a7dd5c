from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import optuna
import psutil
import pytest

from distreal_edge.dropout import Table, filter_counts
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search.evidence import Evidence
from distreal_edge.search.storage import STORAGE_FAILURES, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SOURCES = Path(__file__).resolve().parents[2]
SHORT: Final = (
    *("--snapshots", "2,4", "--steps", "2", "--confirm-steps", "2", "--confirm-seeds", "1", "--batch", "8"),
    *("--validation-images", "8", "--rows", "16", "--population", "4"),
)
COMMAND: Final = ("search", "tiny.safetensors", "--data", "npz", "--root", "blobs.npz", "--out", "table.json", *SHORT)
GOES_ON = "distreal-edge: stopped; the same command goes on from here"


def prepare(folder: Path) -> None:
    """Write a tiny network and a tiny dataset, of images that tell their classes by their brightness."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 400)
    images = (rng.integers(0, 120, (400, 6, 6)) + 60 * labels[:, None, None]).astype(np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:9], "y_test": labels[:9]}
    np.savez(folder / "blobs.npz", **arrays)
    np.savez(folder / "alike.npz", **{**arrays, "y_train": np.zeros_like(labels)})
    builder = PlanBuilder((1, 6, 6))
    stem = builder.conv2d("stem", builder.input, 8, kernel=3, padding=1, bias=False)
    value = builder.relu(builder.batch_norm("stem_bn", stem))
    inner = builder.relu(builder.conv2d("conv1", value, 12, kernel=3, padding=1))
    value = builder.add(builder.conv2d("conv2", inner, 8, kernel=3, padding=1), value)
    output = builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), 3)
    Network.initialise(builder.finish(output)).save(folder / "tiny.safetensors")


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `distreal-edge`, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "distreal_edge", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES), "COLUMNS": "120"},
    )


def run(folder: Path, *arguments: str, timeout_s: float = 100.0) -> subprocess.CompletedProcess[str]:
    with begin(folder, *arguments) as process:
        output, error = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(arguments, process.returncode, output, error)


def evaluations(folder: Path) -> dict[int, tuple[Any, ...]]:
    """Return what is stored of every vector that was screened, by its number."""
    if not (folder / "table.search.db").exists():
        return {}
    try:
        storage = open_storage(f"sqlite:///{folder / 'table.search.db'}")
        trials = optuna.load_study(study_name="tiny npz ordered", storage=storage).get_trials()
    except (KeyError, *STORAGE_FAILURES):  # it is being made
        return {}
    storage.engine.dispose()
    return {
        trial.number: (trial.values, trial.params, trial.user_attrs)
        for trial in trials
        if trial.state is optuna.trial.TrialState.COMPLETE
    }


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return the folder of a finished search, and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    prepare(folder)
    ran = run(folder, *COMMAND, "--budget", "12s", "--workers", "1")
    assert ran.returncode == 0, ran.stderr
    return folder, ran


@pytest.mark.slow
def test_a_search_writes_a_table_for_its_network(searched: tuple[Path, Any]) -> None:
    folder, _ = searched
    table = Table.load(folder / "table.json")
    network = Network.load(folder / "tiny.safetensors")
    table.check_network(network.structure, network.plan.sizes)
    assert (table.draw, table.data, table.batch) == ("ordered", "npz", 8)
    assert table.origin.startswith("search, ")
    assert table.rows[-1].vector == (0.0, 0.0)
    assert all(one.macs < other.macs and one.score < other.score for one, other in pairwise(table.rows))


@pytest.mark.slow
def test_it_says_what_it_does_and_what_it_found(searched: tuple[Path, Any]) -> None:
    folder, ran = searched
    begun, screening, confirming = ran.stderr.splitlines()
    assert begun == "distreal-edge: training at mixed rates"
    assert screening.startswith("distreal-edge: screening: ")
    assert re.fullmatch(r"distreal-edge: confirming: \d+ of \d+ trainings", confirming)
    assert "100.0 %" in ran.stdout
    assert "Screened: " in ran.stdout
    assert "table.json, with its evidence and pictures beside it." in ran.stdout
    rows = len(Table.load(folder / "table.json").rows)
    assert (f"Above the noise: only {rows} rows;" in ran.stdout) == (rows < 16)
    assert len(ran.stdout.splitlines()) == 3 + rows + (rows < 16)


@pytest.mark.slow
def test_the_evidence_has_every_vector_and_belongs_to_the_table(searched: tuple[Path, Any]) -> None:
    folder, _ = searched
    evidence = msgspec.json.decode((folder / "table.evidence.json").read_bytes(), type=Evidence)
    table = Table.load(folder / "table.json")
    assert evidence.table == table.digest
    assert evidence.settings.snapshots_at == (2, 4)
    assert evidence.sizes == (8, 12)
    stored = evaluations(folder)
    assert [one.number for one in evidence.screened] == sorted(stored)
    assert len({one.counts for one in evidence.screened}) == len(evidence.screened) > 3
    assert all(len(one.losses) == 2 for one in evidence.screened)
    rising = [one.hypervolume for one in evidence.screened]
    assert rising == sorted(rising)
    assert evidence.screened[0].origin == "full"
    rows = {one.row: one for one in evidence.confirmed if one.row is not None}
    assert sorted(rows) == list(range(len(table.rows)))
    for number, row in enumerate(table.rows):
        assert rows[number].counts == filter_counts(row.vector, table.sizes)
        assert len(rows[number].falls) == len(rows[number].own_losses) == len(evidence.nothing) == 2
    assert evidence.hypervolumes["found"] >= evidence.hypervolumes["uniform"]


@pytest.mark.slow
def test_three_pictures_stand_beside_the_table(searched: tuple[Path, Any]) -> None:
    folder, _ = searched
    for picture in ("front", "rates", "hypervolume"):
        assert (folder / f"table.{picture}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_finds_the_same(searched: tuple[Path, Any]) -> None:
    folder, _ = searched
    stored, table = evaluations(folder), (folder / "table.json").read_bytes()
    (folder / "table.json").unlink()
    again = run(folder, *COMMAND, "--budget", "12s", "--workers", "1", "--json")
    assert again.returncode == 0, again.stderr
    assert evaluations(folder) == stored
    assert (folder / "table.json").read_bytes() == table
    assert "confirming" not in again.stderr
    figures = json.loads(again.stdout)
    assert figures["screened"] == len(stored)
    assert figures["rows"] == len(Table.load(folder / "table.json").rows)


@pytest.mark.slow
def test_pictures_that_cannot_be_written_leave_the_table_and_its_evidence(searched: tuple[Path, Any]) -> None:
    folder, _ = searched
    (folder / "full.front.png").symlink_to("/dev/full")
    storage = ("--storage", "sqlite:///table.search.db", "--out", "full.json")
    ran = run(folder, *COMMAND, "--budget", "12s", "--workers", "1", *storage)
    assert ran.returncode == 8
    said = "full.json and its evidence are written, but its pictures cannot be: No space left on device; make room"
    assert said in ran.stderr.splitlines()[-1]
    assert (folder / "full.json").read_bytes() == (folder / "table.json").read_bytes()
    assert (folder / "full.evidence.json").exists()


@pytest.mark.slow
def test_other_settings_are_refused_in_the_same_storage(searched: tuple[Path, Any]) -> None:
    folder, _ = searched
    refused = run(folder, *COMMAND, "--lr", "0.1")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "was begun with other settings (recipe.lr was 0.05, is 0.1)" in line


# Killed and stopped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path)
    return tmp_path


def wait_for(happened: Callable[[], Any], *, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


def living(group: int) -> list[int]:
    """Return the processes of a group that live; some that are dead may not have been looked at yet."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def kill_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("kill", [subprocess.Popen.kill, kill_group], ids=["main process", "all processes"])
def test_a_killed_search_goes_on_and_loses_nothing(folder: Path, kill: Callable[[Any], None]) -> None:
    before: dict[int, Any] = {}
    for kept in (3, 6):
        with begin(folder, *COMMAND, "--budget", "16s", "--workers", "2") as process:
            wait_for(lambda kept=kept: len(evaluations(folder)) >= kept)
            now = evaluations(folder)
            kill(process)
        assert process.returncode == -signal.SIGKILL
        assert now.items() >= before.items()
        before = evaluations(folder)
        assert before.items() >= now.items()
    ended = run(folder, *COMMAND, "--budget", "16s", "--workers", "2")
    assert ended.returncode == 0, ended.stderr
    after = evaluations(folder)
    assert after.items() >= before.items()
    found = [tuple(attributes["counts"]) for _, _, attributes in after.values()]
    assert len(set(found)) == len(found)
    origins = [attributes["origin"] for _, _, attributes in after.values() if "origin" in attributes]
    assert origins.count("full") == 1
    assert Table.load(folder / "table.json").rows[-1].vector == (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_all_processes_too(folder: Path, number: signal.Signals) -> None:
    with begin(folder, *COMMAND, "--budget", "60s", "--workers", "2") as process:
        assert process.stderr is not None
        lines = iter(process.stderr)
        assert any("screening" in line for line in lines)
        process.send_signal(number)
        said = "".join(lines).split("\n")
    assert process.returncode == 130
    assert [line for line in said if line] == [GOES_ON, "distreal-edge: interrupted"]
    wait_for(lambda: not living(process.pid), seconds=10.0)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["screening", "confirming"])
def test_ctrl_c_ends_all_processes_and_says_how_to_go_on(folder: Path, phase: str) -> None:
    with begin(folder, *COMMAND, "--budget", "14s", "--workers", "2") as process:
        assert process.stderr is not None
        lines = iter(process.stderr)
        seen = next(line for line in lines if phase in line)
        assert seen.startswith("distreal-edge: ")
        os.killpg(process.pid, signal.SIGINT)
        said = "".join(lines).split("\n")
    assert process.returncode == 130
    assert [line for line in said if line] == [GOES_ON, "distreal-edge: interrupted"]
    wait_for(lambda: not living(process.pid), seconds=10.0)


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--out", "."], 2, "--out . is a folder; name the table's file"),
        (["--out", "no/where.json"], 2, "make it first"),
        (["--out", "table.db"], 2, "end its name in .json"),
        (["--out", "t\nable.json"], 2, "end its name in .json, of plain characters"),
        (["--out", "t\udcff.json"], 2, "end its name in .json, of plain characters"),
        (["--out", "a" * 300 + ".json"], 2, "no files can be written there: File name too long"),
        # .evidence.json.unfinished no longer fits.
        (["--out", "a" * 235 + ".json"], 2, "no files can be written there: File name too long"),
        (["--out", "/proc/table.json"], 2, "no files can be written there: "),
        (["--root", "alike.npz"], 4, "all its 400 images are of one class: nothing can be learned"),
        (["--data", "mnist"], 4, "dataset mnist: no train files in blobs.npz"),
        (["--data", "pictures"], 4, "no dataset is called 'pictures'. Known are "),
        (["--root", "none.npz"], 4, "none.npz"),
        (["--root", "tiny.safetensors"], 4, "tiny.safetensors: not an npz file"),
        (["--images", "63"], 2, "--images"),
        (["--images", "100"], 4, "100 images are too few to set aside 8 for validation and 256 for batch-norm"),
        (["--validation-images", "143"], 4, "too few to set aside 143 for validation"),
        (["--validation-images", "1"], 2, "--validation-images"),
        (["--draw", "best"], 2, "--draw"),
        (["--budget", "soon"], 2, "'soon' is no time: write 30m, 2h, 1h30m or 90s"),
        (["--budget", ""], 2, "'' is no time"),
        (["--budget", "0s"], 2, "'0s' is no time"),
        (["--budget", "9" * 40 + "h"], 2, "is no time"),
        (["--storage", "sqlite://"], 2, "is in memory, where other processes cannot see it"),
        (["--storage", "nonsense"], 2, "the search's storage 'nonsense' cannot be opened"),
        (["--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/x"], 2, "postgresql+psycopg://me:***@127.0.0.1:1/x"),
        (["--workers", "0"], 2, "--workers"),
        (["--cost", "seconds"], 2, "--cost seconds and --profile FILE go together"),
        (["--profile", "profile.json"], 2, "--cost seconds and --profile FILE go together"),
        (["--cost", "seconds", "--profile", "none.json"], 5, "none.json: cannot read the profile"),
        (["--cheapest", "nan"], 2, "nan is not a number"),
        (["--cheapest", "0"], 2, "--cheapest"),
        (["--rows", "15"], 2, "--rows"),
        (["--rows", "65"], 2, "--rows"),
        (["--batch", "1"], 2, "--batch"),
        (["--lr", "nan"], 2, "nan is not a number"),
        (["--lr", "0"], 2, "--lr"),
        (["--snapshots", "4,x"], 2, "write whole numbers with commas between them, as 400,2000"),
        (["--snapshots", ""], 2, "write whole numbers"),
        (["--snapshots", "0,4"], 2, "from 1 on, and 10000000 at most, not after [0, 4]"),
        (["--snapshots", "4,2"], 2, "not after [4, 2]"),
        (["--snapshots", "99999999"], 2, "not after [99999999]"),
        (["--steps", "1"], 2, "--steps"),
        (["--steps", "1000001"], 2, "--steps"),
        (["--confirm-steps", "1000001"], 2, "--confirm-steps"),
        (["--confirm-steps", "1"], 2, "--confirm-steps"),
        (["--confirm-seeds", "0"], 2, "--confirm-seeds"),
        (["--population", "3"], 2, "--population"),
        (["--seed", "-1"], 2, "--seed"),
        (["--crop-padding", "4"], 2, "are for networks of the zoo; a file says its own"),
        (["--horizontal-flip"], 2, "are for networks of the zoo; a file says its own"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    cli: Callable[..., Any], folder: Path, arguments: Sequence[str], code: int, said: str
) -> None:
    before = sorted(folder.iterdir())
    refused = cli(*COMMAND, *arguments)
    assert refused.returncode == code, refused.stderr
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert line.startswith("distreal-edge: ")
    assert said in line
    assert "secret" not in line
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("network", "code", "said"),
    [
        ("none.safetensors", 2, "none.safetensors has no filters that can be dropped: there is nothing to search"),
        ("single.safetensors", 2, "single.safetensors has no filters that can be dropped: there is nothing to search"),
        ("a" * 300, 2, "is neither a network's file nor in the zoo, which has densenet40, "),
        ("resnet9", 2, "'resnet9' is neither a network's file nor in the zoo, which has densenet40, "),
        ("blobs.npz", 3, "blobs.npz"),
        ("other.safetensors", 2, "takes images [1, 5, 5] of 3 classes; those of blobs are [1, 6, 6], of 3 classes"),
        ("fewer.safetensors", 2, "of 2 classes; those of blobs are [1, 6, 6], of 3 classes"),
    ],
)
def test_a_network_that_cannot_be_searched_is_one_line(
    cli: Callable[..., Any], folder: Path, network: str, code: int, said: str
) -> None:
    for name, size, filters, classes in (
        ("other", 5, 4, 3),
        ("fewer", 6, 4, 2),
        ("none", 6, 0, 3),
        ("single", 6, 1, 3),
    ):
        builder = PlanBuilder((1, size, size))
        value = builder.conv2d("conv", builder.input, filters, kernel=3, padding=1) if filters else builder.input
        value = builder.global_avg_pool(value)
        plan = builder.finish(builder.linear("fc", builder.flatten(value), classes))
        Network.initialise(plan).save(folder / f"{name}.safetensors")
    refused = cli("search", network, *COMMAND[2:])
    assert refused.returncode == code
    (line,) = refused.stderr.splitlines()
    assert said in line


def test_without_optuna_it_is_named(cli_without: Callable[..., Any], folder: Path) -> None:
    refused = cli_without("optuna", *COMMAND)
    assert refused.returncode == 2
    assert refused.stderr == "distreal-edge: the search needs Optuna: pip install 'distreal-edge[search]'\n"


def test_its_help_needs_no_optuna(cli_without: Callable[..., Any]) -> None:
    shown = cli_without("optuna", "search", "--help")
    assert shown.returncode == 0
    assert "--budget" in shown.stdout
