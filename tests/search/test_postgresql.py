"""Several machines share one search through PostgreSQL: a real one, which is started for this."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest

from distreal_edge.dropout import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.network import Network

SOURCES = Path(__file__).resolve().parents[2]
_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_IS_ROOT = os.geteuid() == 0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _BINARIES or (_IS_ROOT and shutil.which("runuser") is None),
        reason="PostgreSQL is not installed (on Debian: apt-get install postgresql)",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("psycopg") is None, reason="psycopg is not installed (pip install 'psycopg[binary]')"
    ),
]


def postgres(program: str, *arguments: object) -> None:
    """Run a program of PostgreSQL, which refuses to serve as root."""
    command = [str(_BINARIES[-1] / program), *map(str, arguments)]
    as_somebody = ["runuser", "-u", "postgres", "--"] if _IS_ROOT else []
    subprocess.run([*as_somebody, *command], capture_output=True, timeout=60, check=True, cwd="/")


@pytest.fixture
def server() -> Iterator[str]:
    """Start PostgreSQL on a socket in a folder of its own; return the URL of an empty database."""
    # Short: the name of a socket has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if _IS_ROOT:
            shutil.chown(folder, "postgres")
        postgres("initdb", "-D", folder / "data", "-U", "search", "--auth=trust", "--no-sync", "--encoding=UTF8")
        settings = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        postgres("pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", settings, "start")
        try:
            yield f"postgresql+psycopg://search:secret@/postgres?host={folder}"
        finally:
            postgres("pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def search(folder: Path, out: str, server: str, *arguments: str) -> subprocess.Popen[str]:
    """Begin one machine's part in the search."""
    short = ("--snapshots", "2,4", "--steps", "2", "--confirm-steps", "2", "--confirm-seeds", "1", "--batch", "8")
    tiny = ("--validation-images", "8", "--rows", "16", "--population", "4", "--workers", "1", "--budget", "20s")
    command = ("search", "tiny.safetensors", "--data", "npz", "--root", "blobs.npz", "--out", out, *short, *tiny)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "distreal_edge", *command, "--storage", server, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )


def test_two_commands_share_one_search(server: str, tmp_path: Path, network: Network) -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 400)
    images = (rng.integers(0, 120, (400, 6, 6)) + 60 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "blobs.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    network.save(tmp_path / "tiny.safetensors")

    with contextlib.ExitStack() as ending:
        both = [ending.enter_context(search(tmp_path, f"{name}.json", server)) for name in ("one", "other")]
        for process in both:
            ending.callback(process.kill)
        for process in both:
            _, error = process.communicate(timeout=100)
            assert process.returncode == 0, error
            assert "secret" not in error

    def trials(study: str) -> list[optuna.trial.FrozenTrial]:
        storage = optuna.storages.RDBStorage(server)
        try:
            found = optuna.load_study(study_name=study, storage=storage).get_trials()
        finally:
            storage.engine.dispose()
        return [trial for trial in found if trial.state is optuna.trial.TrialState.COMPLETE]

    screened = trials("tiny npz ordered")
    counts = [tuple(trial.user_attrs["counts"]) for trial in screened]
    assert len(set(counts)) == len(counts) > 4
    confirmed = trials("tiny npz ordered, confirmation")
    tasks = [str(trial.user_attrs["task"]) for trial in confirmed]
    assert len(set(tasks)) == len(tasks) > 4
    # Each command has one process that screens and one that confirms.
    assert len({trial.user_attrs["worker"]["pid"] for trial in [*screened, *confirmed]}) > 2

    # Whoever ended first did not see the other's last vectors; asked once more, both say the same.
    for name in ("one", "other", "one"):
        with search(tmp_path, f"{name}.json", server) as process:
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error
    assert Table.load(tmp_path / "one.json") == Table.load(tmp_path / "other.json")
    assert len(trials("tiny npz ordered")) == len(screened)


def test_other_settings_are_refused_without_a_word_about_the_password(
    server: str, tmp_path: Path, network: Network
) -> None:
    network.save(tmp_path / "tiny.safetensors")
    rng = np.random.default_rng(7)
    images, labels = rng.integers(0, 256, (300, 6, 6), dtype=np.uint8), rng.integers(0, 3, 300)
    np.savez(tmp_path / "blobs.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    nowhere = server.replace("/postgres?", "/nowhere?")
    with search(tmp_path, "table.json", nowhere) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert 'database "nowhere" does not exist' in error
    assert "secret" not in error
    (_line,) = error.splitlines()
