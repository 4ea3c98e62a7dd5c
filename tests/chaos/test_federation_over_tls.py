"""A federation whose identities were made by `keys` and installed by `enroll`, and by nothing else."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.aggregator import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WAIT_S = 30.0

pytestmark = [pytest.mark.chaos]


def program(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distreal_edge", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip


def enrolled(keys: Path, name: str, folder: Path, port: int, rest: str) -> Path:
    """Enrol as a newcomer would, and say in the file that was written what is his; return it."""
    folder.mkdir()
    ran = program("enroll", keys / "enrolment" / f"{name}.enrolment", folder=folder)
    assert ran.returncode == 0, ran.stderr
    (config,) = folder.glob("*.toml")
    text, count = re.subn(r"# [^\n]*\n\[(data|network)\]\n(.+\n)*", rest, config.read_text())
    assert count == 1
    config.write_text(text.replace("port = 8883", f"port = {port}"))
    return config


@pytest.mark.slow
def test_a_federation_trains_over_tls_with_what_keys_and_enroll_made_and_a_revoked_device_ends_with_one_line(
    tmp_path: Path, mosquitto_with: Any, figure: Callable[[str, str, str], None]
) -> None:
    keys = tmp_path / "keys"
    for arguments in (
        ("keys", "create", "--federation", "garden", "--broker", "localhost"),
        ("keys", "add", "pi-1", "pi-2", "stolen"),
    ):
        ran = program(*arguments, folder=tmp_path)
        assert ran.returncode == 0, ran.stderr
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, y_train=np.arange(16) % 2)
    data = f'[data]\nname = "npz"\nroot = "{tmp_path}/images.npz"\n'
    with contextlib.ExitStack() as running:
        stolen = enrolled(keys, "stolen", tmp_path / "stolen", 0, data)
        assert program("keys", "revoke", "stolen", folder=tmp_path).returncode == 0
        port = running.enter_context(mosquitto_with(keys, tmp_path / "run"))
        stolen.write_text(stolen.read_text().replace("port = 0", f"port = {port}"))
        rest = (
            '[network]\nzoo = "resnet8"\nclasses = 2\nimage_size = 8\n'
            "[rounds]\nnumber = 1\nseconds = 25\nleast_devices = 2\n[training]\nbatch = 8\nmost_epochs = 1\n"
        )
        configs = {
            "aggregator": enrolled(keys, "aggregator", tmp_path / "aggregator", port, rest),
            **{name: enrolled(keys, name, tmp_path / name, port, data) for name in ("pi-1", "pi-2")},
        }
        processes = {}
        for name, config in configs.items():
            verb = [sys.executable, "-m", "distreal_edge", "aggregate" if name == "aggregator" else "run"]
            log = running.enter_context((config.parent / "log").open("w"))
            processes[name] = running.enter_context(
                subprocess.Popen([*verb, "--config", config], cwd=config.parent, stdout=log, stderr=subprocess.STDOUT)
            )
            running.callback(processes[name].kill)
        refused = program("run", "--config", stolen, folder=stolen.parent)
        assert processes["aggregator"].wait(3 * WAIT_S) == 0, (tmp_path / "aggregator" / "log").read_text()
    with Ledger(tmp_path / "aggregator" / "aggregator-state" / "ledger.sqlite") as ledger:
        assert {update.device for update in ledger.updates(1)} == {"pi-1", "pi-2"}
        assert ledger.refusals() == {}
    assert refused.returncode == 6
    assert "TLS: our certificate was revoked; " in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    figure("a round over TLS, with files from keys and enroll alone", "2 of 2 updates averaged", "all")
