"""What a training device costs its owner: a workload on all cores with the device beside it and without.

    .venv/bin/python benchmarks/manners.py             # needs stress-ng, and a machine with nothing else to do

The owner's workload is a fixed amount of work on every core, at ordinary priority, timed by the clock. A broker, an
aggregator and a device run all the while; between paired runs, in random order, all three are stopped by SIGSTOP or go
on. Printed are the median slowdown with its 95 % interval, and what the device costs between rounds, when it is idle.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from one_device import one_device


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--operations", type=int, default=1500, help="of stress-ng's matrix product, for each core")
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rng = np.random.default_rng(0)
    ratios: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        one_device(Path(folder), round_s=3600.0, of_full=0.5, most_threads=cores) as device,
    ):
        children = psutil.Process().children(recursive=True)
        owners_work(cores, given.operations)  # warms up
        trained = 0
        for _ in range(given.pairs):
            seconds: dict[bool, float] = {}
            for beside in rng.permutation([False, True]).tolist():
                for child in children:
                    child.send_signal(signal.SIGCONT if beside else signal.SIGSTOP)
                time.sleep(1.0)
                before = len(device.steps())
                seconds[beside] = owners_work(cores, given.operations)
                trained += (len(device.steps()) - before) * beside
            ratios.append(seconds[True] / seconds[False])
        for child in children:
            child.send_signal(signal.SIGCONT)
    low, high = interval(ratios)
    print(
        f"owner's work on {cores} cores takes {statistics.median(ratios) - 1.0:+.2%} longer beside a training device "
        f"(95 % interval of the median {low - 1.0:+.2%} to {high - 1.0:+.2%}, {given.pairs} pairs of "
        f"{statistics.median(seconds.values()):.1f} s); {trained} mini-batches were trained meanwhile"
    )
    idle = idle_share(given.idle_seconds)
    print(f"an idle device takes {idle:.2%} of a core")
    if given.out:
        given.out.write_text(json.dumps({"ratios": ratios, "idle": idle}, indent=1), encoding="utf-8")


def owners_work(cores: int, operations: int) -> float:
    """Do the owner's work; return its seconds."""
    command = ["stress-ng", "--quiet", "--matrix", str(cores), "--matrix-method", "prod", "--matrix-size", "192"]
    began = time.monotonic()
    subprocess.run([*command, "--matrix-ops", str(operations * cores)], check=True)
    return time.monotonic() - began


def idle_share(seconds: float) -> float:
    """Return the share of a core that a connected device takes while no round names it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        one_device(Path(folder), round_s=12.0, of_full=2.0, most_threads=1) as device,
    ):
        process, aggregator = child("run"), child("aggregate")
        aggregator.send_signal(signal.SIGSTOP)  # no further round is announced
        while (steps := device.steps()) and time.time() - steps[-1].time_s < 15.0:
            time.sleep(0.5)
        before = process.cpu_times()
        time.sleep(seconds)
        after = process.cpu_times()
        aggregator.send_signal(signal.SIGCONT)
    return (after.user + after.system - before.user - before.system) / seconds


def child(verb: str) -> psutil.Process:
    """Return the program that was started with this verb."""
    children = psutil.Process().children(recursive=True)
    return next(one for one in children if {verb, "distreal_edge"} <= {*one.cmdline()})


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median by resampling."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (10_000, len(ratios))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


if __name__ == "__main__":
    main()
