"""How soon a real device follows when a core is taken away, and when it comes back.

    .venv/bin/python benchmarks/reaction.py            # needs stress-ng, and a machine with nothing else to do

A broker, an aggregator and a device run on this machine. By turns stress-ng keeps one core busy and lets it go.
Printed, from the device's own log of mini-batches: after how many seconds the first mini-batch begins that is cheaper
than those before (or dearer, when the core comes back), and how many that began more than a second after the change
still were not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from one_device import one_device

if TYPE_CHECKING:
    from one_device import Step

BEFORE_S = 2.0
LATE_S = 1.0
CLEARLY = 0.05
"""A mini-batch is cheaper, or dearer, when its share of the MACs differs by so much of what it was."""


def main() -> None:
    """Take a core away and give it back, many times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=5.0, help="that the core is taken, and that it is free")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rng = np.random.default_rng(0)
    changes: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        round_s = given.turns * 2.0 * (given.seconds + 1.0) + 30.0
        with one_device(Path(folder), round_s=round_s, of_full=0.5, most_threads=cores) as device:
            time.sleep(4.0)
            for _ in range(given.turns):
                load = subprocess.Popen(["stress-ng", "--quiet", "--cpu", "1"])
                changes.append(("taken", time.time()))
                time.sleep(given.seconds + rng.uniform(0.0, 1.0))
                load.terminate()
                load.wait()
                changes.append(("given back", time.time()))
                time.sleep(given.seconds + rng.uniform(0.0, 1.0))
            steps = device.steps()
    figures: dict[str, list[tuple[float, int]]] = {"taken": [], "given back": []}
    for number, (kind, at_s) in enumerate(changes):
        until_s = changes[number + 1][1] if number + 1 < len(changes) else at_s + given.seconds
        figures[kind].append(reaction(steps, at_s, until_s, sign=-1 if kind == "taken" else 1))
    for kind, own in figures.items():
        delays = [delay for delay, _ in own]
        print(
            f"core {kind}: {len(own)} times; the first mini-batch that follows begins after "
            f"{statistics.median(delays):.2f} s (median), {max(delays):.2f} s (most); "
            f"{sum(late for _, late in own)} mini-batches later than {LATE_S:g} s did not follow"
        )
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def reaction(steps: list[Step], at_s: float, until_s: float, *, sign: int) -> tuple[float, int]:
    """Return the seconds until the first mini-batch that follows, and how many late ones do not follow."""
    before = statistics.median(step.share for step in steps if at_s - BEFORE_S <= step.time_s < at_s)
    after = [step for step in steps if at_s <= step.time_s < until_s]
    follows = [sign * (step.share - before) > CLEARLY * before for step in after]
    first = next((step.time_s - at_s for step, does in zip(after, follows, strict=True) if does), until_s - at_s)
    late = sum(not does for step, does in zip(after, follows, strict=True) if step.time_s > at_s + LATE_S)
    return first, late


if __name__ == "__main__":
    main()
