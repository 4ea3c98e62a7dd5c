"""What every proof under faults needs: how often to do it, and where to write down what came of it.

`scripts/chaos` runs them in full and prints their table; `scripts/test` runs a short form of each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

FULL = os.environ.get("DISTREAL_EDGE_CHAOS") == "full"
"""Whether the figures of the promises are to be reached, not only their kind."""


@pytest.fixture
def times() -> Callable[[int, int], int]:
    """Return how often to do something: `times(short, full)`."""
    return lambda short, full: full if FULL else short


@pytest.fixture
def figure() -> Callable[[str, str, str], None]:
    """Return a function that writes down a line of the table: what was done, what came of it, what is asked for."""
    report = os.environ.get("DISTREAL_EDGE_CHAOS_REPORT")

    def write(done: str, found: str, target: str) -> None:
        if report is not None:
            with Path(report).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([done, found, target]) + "\n")

    return write


@pytest.fixture(scope="session")
def beside() -> Callable[[str], Any]:
    """Import a module that lies beside the tests here."""

    def load(name: str) -> Any:
        known = f"distreal_edge_chaos_{name}"
        if known not in sys.modules:
            spec = importlib.util.spec_from_file_location(known, Path(__file__).with_name(f"{name}.py"))
            assert spec is not None
            assert spec.loader is not None
            sys.modules[known] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[known])
        return sys.modules[known]

    return load
