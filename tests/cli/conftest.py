from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distreal_edge.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

Ran = subprocess.CompletedProcess[str]

SOURCES = Path(__file__).resolve().parents[2]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `distreal-edge` in an empty folder, and return how it ended and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    # It would stay one for all tests that follow in this process, and so would every program that they start.
    monkeypatch.setattr("distreal_edge.device.become_guest", lambda: None)

    def run(*arguments: str) -> Ran:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["distreal-edge", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(arguments, ended.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def cli_without(tmp_path: Path) -> Callable[..., Ran]:
    """Run `distreal-edge` in a process of its own, in which a module cannot be imported."""

    def run(module: str, *arguments: str) -> Ran:
        code = f"import sys; sys.modules[{module!r}] = None; from distreal_edge.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
        )

    return run
