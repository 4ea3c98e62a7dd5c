from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from distreal_edge.simulate.results import Results

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "convergence.py"


@pytest.mark.slow
def test_the_comparison_runs_at_a_small_size_and_prints_a_line_for_each_strategy(tmp_path: Path) -> None:
    chosen = ["--strategy", "ours", "--strategy", "small-filled"]
    command = [sys.executable, BENCHMARK, "fashion-femnist-within", "--size", "small", "--seeds", "2", *chosen]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110)
    assert ran.returncode == 0, ran.stderr
    lines = [line for line in ran.stdout.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| distreal-edge", "| small network for all, time filled"]
    folder = tmp_path / "convergence" / "fashion-femnist-within-small"
    results = msgspec.json.decode((folder / "results.json").read_bytes(), type=Results)
    assert [(run.strategy, run.seed, len(run.rounds)) for run in results.runs] == [
        ("ours", 0, 6),
        ("small-filled", 0, 6),
        ("ours", 1, 6),
        ("small-filled", 1, 6),
    ]
    assert (folder / "accuracy-over-time.png").exists()
