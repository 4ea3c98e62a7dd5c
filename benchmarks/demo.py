"""Run the demo several times and print what it reached: the figures that README.md states.

    .venv/bin/python benchmarks/demo.py --seeds 1 2 3 --out demo.json

Each run is the command that a user types, in a process of its own, with shards, traces and weights from its seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(seed: int, draw: str, folder: Path) -> dict[str, Any]:
    """Run the demo once and return its figures."""
    began = time.monotonic()
    command = ["demo", "--seed", str(seed), "--draw", draw, "--report", str(folder), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "distreal_edge", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    report = json.loads(done.stdout)
    return {
        "seed": seed,
        "draw": draw,
        "exit_code": done.returncode,
        "accuracy": report["accuracy"],
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    """Run every seed, print a line each and the medians, and write all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--draw", default="ordered")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            figures.append(run(seed, arguments.draw, Path(folder) / str(seed)))
            last = figures[-1]
            print(f"seed {seed}: accuracy {last['accuracy']:.2%}, {last['seconds']:.0f} s, exit {last['exit_code']}")
    accuracy = statistics.median(figure["accuracy"] for figure in figures)
    seconds = statistics.median(figure["seconds"] for figure in figures)
    print(
        f"median of {len(figures)}: accuracy {accuracy:.2%}, {seconds:.0f} s; lowest accuracy "
        f"{min(figure['accuracy'] for figure in figures):.2%}, longest {max(f['seconds'] for f in figures):.0f} s"
    )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
