"""The inner loops as the ARM compiler makes them: all in registers, and as fast as a Cortex-A72's ports allow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = next(
    (name for name in ["llvm-mca", *(f"llvm-mca-{version}" for version in range(14, 31))] if shutil.which(name)), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs Debian's g++-aarch64-linux-gnu"),
]


@pytest.fixture(scope="module")
def held() -> dict[str, dict[str, Any]]:
    """Return what benchmarks/arm_loops.py says of the loops that do most of a network's work, by name."""
    options = [] if SIMULATOR else ["--no-simulation"]
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks/arm_loops.py", "--json", "-", *options],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert result.returncode in {0, 1}, result.stderr
    return {loop["name"]: loop for loop in json.loads(result.stdout)["loops"] if loop["held"]}


def test_every_large_tile_is_one_loop_of_outputs_times_positions_multiplications(
    held: dict[str, dict[str, Any]],
) -> None:
    for name, loop in held.items():
        outputs, positions = name[name.index("<") + 1 : -1].split(", ")
        assert loop["fmla"] == int(outputs) * int(positions), name
    assert {"gather_tile<8, 3>", "gather_tile<7, 3>", "weight_gradient_tile<4, 6>"} <= set(held)


def test_no_large_tile_keeps_anything_on_the_stack(held: dict[str, dict[str, Any]]) -> None:
    assert [name for name, loop in held.items() if loop["spills"] > 0] == []


@pytest.mark.skipif(SIMULATOR is None, reason="needs Debian's llvm")
def test_every_large_tile_is_within_five_percent_of_the_port_limit_of_a_cortex_a72(
    held: dict[str, dict[str, Any]],
) -> None:
    for name, loop in held.items():
        found = loop["cores"]["cortex-a72"]
        assert found["limit"] <= 1.05 * loop["fmla"], f"{name}: something else than multiplying is the limit"
        assert found["cycles"] <= 1.05 * found["limit"], name
