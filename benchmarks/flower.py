"""Run FedAvg in Flower's simulation and in ours, in turns, and compare accuracy, images a second and memory.

    .venv/bin/python benchmarks/flower.py --json flower.json       # some twenty minutes on two quiet cores
    .venv/bin/python benchmarks/flower.py --quick                  # one or two

Both train the same network from the same weights on the same shards: the same devices in every round, the same
mini-batches in the same order, no augmentation, plain FedAvg weighted by images. Batch-norm statistics are measured on
the same images at the server, and models are scored on the same test images. What is left to differ is rounding, which
every mini-batch multiplies for the next: printed is how far apart the models are after the first round, and how far
PyTorch parts from itself on one device when it computes in its other memory layout.

Flower (flower_theirs.py) runs in a virtual environment of its own, `--venv`, which is made where it is missing: Ray,
one actor for each core with one thread of PyTorch, in whichever memory layout PyTorch is faster. Ours (flower_ours.py)
is the strategy `full-unlimited`, one worker for each core. Each run is a process of its own; who goes first changes
from seed to seed.

Images a second are those of all devices' mini-batches, over the time from the first round's beginning to the last
average; workers are up by then, and nothing is scored. With start-up it is the life of the process, scoring included.
Core-seconds are the processor time in that life: what a busy machine disturbs least. Memory is the largest sum of the
proportional set sizes (PSS: of a page that n processes share, each has an n-th) of the process and all that descend
from it, which is read from /proc four times a second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from flower_scenario import SIZES, Size, make_scenario, quick, write_data, write_for_flower

from distreal_edge.bench import describe_machine, read_state
from distreal_edge.errors import DistrealError

HERE = Path(__file__).resolve().parent
VENV = Path("~/.cache/distreal-edge/flower")
# Newest of both when this was written. On x86-64 this PyTorch comes without CUDA, as the device's own does.
PACKAGES = ("flwr[simulation]==1.42.0", "torch==2.13.0")
SAMPLE_S = 0.25
SIDES = ("theirs", "ours")
SURROUNDINGS = {
    # Neither reports what it is used for.
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # On a busy machine Ray gives up its own daemons too early.
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
}


class Watch(threading.Thread):
    """Watches a process and its descendants until it ends: the peaks of their summed memory, their processor time."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pss_bytes = self.rss_bytes = self.processes = 0
        self._pid = pid
        self._core_s: dict[int, float] = {}

    @property
    def core_s(self) -> float:
        """The processor time of all that were seen."""
        return sum(self._core_s.values())

    def run(self) -> None:
        """Sample until the process is gone."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._pid)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                family = [process, *process.children(recursive=True)]
                for one in family:
                    with suppress(psutil.NoSuchProcess):
                        taken = one.cpu_times()
                        self._core_s[one.pid] = taken.user + taken.system
                read = [sizes(one.pid) for one in family]
                self.pss_bytes = max(self.pss_bytes, sum(pss for pss, _ in read))
                self.rss_bytes = max(self.rss_bytes, sum(rss for _, rss in read))
                self.processes = max(self.processes, len(family))
                time.sleep(SAMPLE_S)


def sizes(pid: int) -> tuple[int, int]:
    """Return a process's proportional and its resident set size in bytes; 0 when it is gone."""
    found = {"Pss:": 0, "Rss:": 0}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace").splitlines()[1:]:
            name, number, *_ = line.split()
            if name in found:
                found[name] = int(number) * 1024
    return found["Pss:"], found["Rss:"]


def flower_python(folder: Path) -> Path:
    """Return the interpreter of Flower's virtual environment, which is made when it is not there or half made."""
    python, complete = folder / "bin" / "python", folder / "complete.txt"
    wanted = "\n".join(PACKAGES)
    if complete.is_file() and complete.read_text(encoding="utf-8") == wanted:
        return python
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        message = f"--venv {folder}: there is something else; name a folder that does not exist"
        raise SystemExit(message)
    print(f"installing {' and '.join(PACKAGES)}, with what they need (about 2 GB), into {folder}", flush=True)
    try:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        message = (
            f"{folder}: Flower cannot be installed: {error}; it needs a package index and 2 GB of disk, "
            "see what pip says above"
        )
        raise SystemExit(message) from None
    complete.write_text(wanted, encoding="utf-8")
    return python


def run_side(command: list[str | Path], folder: Path, side: str) -> dict[str, Any]:
    """Run one side in a process of its own; return its figures, with what could be seen from outside."""
    log = folder / f"{side}.log"
    began = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, folder], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **SURROUNDINGS}, cwd=folder
        )
        watch = Watch(process.pid)
        watch.start()
        code = process.wait()
    whole_s = time.perf_counter() - began
    watch.join()
    result = folder / f"{side}.json"
    if code or not result.is_file():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        message = f"{side} ended with {code} and without a result:\n{tail}"
        raise SystemExit(message)
    figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return {
        **figures,
        "whole_s": whole_s,
        "images_per_s": figures["images"] / figures["train_s"],
        "images_per_s_with_start": figures["images"] / whole_s,
        "images_per_core_s": figures["images"] / watch.core_s,
        "pss_bytes": watch.pss_bytes,
        "rss_bytes": watch.rss_bytes,
        "processes": watch.processes,
    }


def compare_first_round(folder: Path) -> float:
    """Return how far apart the models after the first round are, as a share of how far they have come (L2 norms)."""
    with (
        np.load(folder / "weights.npz") as before,
        np.load(folder / "theirs-first.npz") as theirs,
        np.load(folder / "ours-first.npz") as ours,
    ):
        apart = sum(float(np.square(theirs[name] - ours[name], dtype=np.float64).sum()) for name in before)
        moved = sum(float(np.square(ours[name] - before[name], dtype=np.float64).sum()) for name in before)
    return math.sqrt(apart / moved)


def run_seed(size: Size, seed: int, python: Path, cores: int, order: tuple[str, ...] = SIDES) -> dict[str, Any]:
    """Run both sides with one seed, one after the other."""
    with tempfile.TemporaryDirectory(prefix="flower-") as name:
        folder = Path(name)
        write_data(size, seed, folder)
        scenario = make_scenario(size, seed, folder)
        (folder / "scenario.json").write_bytes(msgspec.json.encode(scenario))
        plan = write_for_flower(scenario, folder, cores=cores)
        programs: dict[str, list[str | Path]] = {
            "theirs": [python, HERE / "flower_theirs.py"],
            "ours": [sys.executable, HERE / "flower_ours.py"],
        }
        probe = subprocess.run([*programs["theirs"], folder, "--layouts"], stdout=subprocess.PIPE, check=True)
        layouts: dict[str, Any] = json.loads(probe.stdout)
        plan["channels_last"] = layouts["seconds"]["channels_last"] < layouts["seconds"]["contiguous"]
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        run: dict[str, Any] = {"seed": seed, "layouts": layouts, "channels_last": plan["channels_last"]}
        run |= {side: run_side(programs[side], folder, side) for side in order}
        if run["theirs"]["images"] != run["ours"]["images"]:
            message = f"not the same work: {run['theirs']['images']} images in Flower, {run['ours']['images']} here"
            raise SystemExit(message)
        run["first_round_apart"] = compare_first_round(folder)
    return run


def print_run(run: dict[str, Any]) -> None:
    """Print a line for each side of one seed."""
    for side in SIDES:
        own = run[side]
        print(
            f"  seed {run['seed']} {side:<7}{own['accuracy']:>9.2%}{own['images_per_s']:>10.0f}"
            f"{own['images_per_s_with_start']:>12.0f}{own['images_per_core_s']:>12.0f}"
            f"{own['pss_bytes'] / 1e6:>9.0f}{own['rss_bytes'] / 1e6:>9.0f}"
            f"{own['processes']:>6}",
            flush=True,
        )
    print(
        f"    after round 1 the models are {run['first_round_apart']:.2%} of their way apart; "
        f"PyTorch from itself, on one device: {run['layouts']['apart']:.2%}",
        flush=True,
    )


def summarise(runs: list[dict[str, Any]], test_images: int) -> dict[str, Any]:
    """Return the medians, the ratios (ours over theirs, per seed) and whether the accuracies are equal within noise.

    Noise is two standard errors of the mean difference: from how the differences of single seeds spread (shards and
    weights are the same on both sides, so their luck cancels out), and from how exactly so many test images tell an
    accuracy.
    """
    accuracy = {side: [run[side]["accuracy"] for run in runs] for side in SIDES}
    means = {side: statistics.fmean(accuracy[side]) for side in SIDES}
    spreads = {side: statistics.stdev(accuracy[side]) if len(runs) > 1 else 0.0 for side in SIDES}
    differences = [ours - theirs for ours, theirs in zip(accuracy["ours"], accuracy["theirs"], strict=True)]
    difference = statistics.fmean(differences)
    of_seeds = statistics.variance(differences) if len(runs) > 1 else 0.0
    of_images = sum(mean * (1.0 - mean) / test_images for mean in means.values())
    noise = 2.0 * math.sqrt((of_seeds + of_images) / len(runs))
    fields = ("images_per_s", "images_per_s_with_start", "images_per_core_s", "pss_bytes", "rss_bytes")
    return {
        "accuracy": means,
        "spread": spreads,
        "difference": difference,
        "noise": noise,
        "equal": abs(difference) <= noise,
        "median": {side: {key: statistics.median(run[side][key] for run in runs) for key in fields} for side in SIDES},
        "ratio": {key: statistics.median(run["ours"][key] / run["theirs"][key] for run in runs) for key in fields},
    }


def print_summary(found: dict[str, Any]) -> None:
    """Print accuracies with their spread, and the ratios."""
    ours, theirs = (
        "{:.2%} +- {:.2%}".format(found["accuracy"][side], found["spread"][side]) for side in ("ours", "theirs")
    )
    print(
        f"  accuracy {ours} here, {theirs} in Flower: {found['difference']:+.2%} with a noise of {found['noise']:.2%}, "
        f"{'equal within it' if found['equal'] else 'DIFFERENT'}"
    )
    print("  ours over Flower's, medians of the ratios of one seed:", end="")
    for key, what, sign in (
        ("images_per_s", "images a second", 1),
        ("images_per_s_with_start", "with start-up", 1),
        ("images_per_core_s", "images a core-second", 1),
        ("pss_bytes", "peak memory", -1),
    ):
        ratio = found["ratio"][key]
        print(
            f" {what} {ratio:.2f} ({'ahead' if (ratio - 1.0) * sign > 0.0 else 'BEHIND'})",
            end="," if sign > 0 else "\n",
        )
    sys.stdout.flush()


def main() -> None:
    """Run all scenarios and seeds, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=list(SIZES), help="both; with --quick fashion-mnist")
    parser.add_argument("--seeds", nargs="+", type=int, help="1 2 3; with --quick 1 2")
    parser.add_argument(
        "--cores", type=int, default=2, help="for either side: its processes, and all that they may use"
    )
    parser.add_argument("--venv", type=Path, default=VENV, help=f"Flower's virtual environment, {VENV}")
    parser.add_argument("--quick", action="store_true", help="few devices, rounds and images")
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < arguments.cores:
        message = f"--cores {arguments.cores}: only {len(allowed)} may be used here"
        raise SystemExit(message)
    python = flower_python(arguments.venv.expanduser())
    os.sched_setaffinity(0, allowed[: arguments.cores])
    machine, state = describe_machine(), read_state()
    print(
        f"{machine.processor}, {arguments.cores} of {machine.cores} cores, load {state.load:.2f}; {', '.join(PACKAGES)}"
    )
    print(
        "images a second of training, with start-up and scoring, a core-second; peak MB of all processes; their number"
    )
    results: dict[str, Any] = {}
    try:
        for name in arguments.scenarios or (["fashion-mnist"] if arguments.quick else list(SIZES)):
            size = quick(SIZES[name]) if arguments.quick else SIZES[name]
            print(
                f"{name}, {size.network}: {size.per_round} of {size.devices} devices in {size.rounds} rounds, "
                f"{size.images} images; {size.test_images} test images"
            )
            print(f"{'accuracy':>25}{'img/s':>10}{'with start':>12}{'img/core-s':>12}{'PSS':>9}{'RSS':>9}{'procs':>6}")
            runs: list[dict[str, Any]] = []
            for seed in arguments.seeds or ([1, 2] if arguments.quick else [1, 2, 3]):
                order = SIDES[:: -1 if len(runs) % 2 else 1]
                runs.append(run_seed(size, seed, python, arguments.cores, order))
                print_run(runs[-1])
            results[name] = {"runs": runs, **summarise(runs, size.test_images)}
            print_summary(results[name])
    except DistrealError as error:
        raise SystemExit(str(error)) from None
    if arguments.json is not None:
        figures = {
            "processor": machine.processor,
            "cores": arguments.cores,
            "load": state.load,
            "packages": PACKAGES,
            "scenarios": results,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
