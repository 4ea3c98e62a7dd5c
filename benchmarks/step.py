"""Compare whole training steps with PyTorch's, in one run, and print the ratios beside their floors.

    .venv/bin/python benchmarks/step.py --json step.json           # some eight minutes on a quiet machine
    .venv/bin/python benchmarks/step.py --quick                    # one or two

Batches of 32 images in CIFAR's shape; a step includes the loss and SGD with momentum and weight decay; every filter
group keeps the same share, the first filters of it. PyTorch (torch_step.py) computes a really smaller network, or
selects the survivors of full weights by index in every step; each in both layouts, with oneDNN and without. All of them
and ours take turns, one step each, and what is printed are medians of the ratios of one turn. With one thread a step's
time is the processor time of the process, so that what others do on the machine counts for little; with more it is the
time that passes, and the machine must be quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_step import FORMS, TorchStep

from distreal_edge import Engine
from distreal_edge.bench import Step, describe_machine, prepare_step, read_state

NETWORKS = ("resnet20", "vgg_small", "densenet40", "mobilenet_v2")
KEEPS = (1.0, 0.75, 0.6, 0.5, 0.35, 0.25)
# Time of the best PyTorch layout over ours, survivors selected by index, oneDNN on; in the order of KEEPS.
FLOORS = {
    "resnet20": (1.0, 1.5, 2.0, 1.8, 3.0, 4.0),
    "vgg_small": (0.95, 1.2, 1.35, 1.1, 1.6, 1.6),
    "densenet40": (1.3, 1.7, 2.0, 2.0, 2.5, 3.0),
    "mobilenet_v2": (1.2, 1.3, 1.5, 1.5, 1.8, 2.0),
}
FLOORS_WITHOUT_ONEDNN = {("resnet20", 1.0): 2.5, ("resnet20", 0.5): 4.0, ("resnet20", 0.25): 6.0}
# Our own time over our time at full width, divided by the ratio of multiply-accumulates: at most this.
CEILINGS_PER_MAC = {0.5: 1.2, 0.25: 1.6}
PER_MAC_NETWORKS = ("vgg_small", "resnet20")
FLOORS_SECOND_THREAD = {1.0: 1.8, 0.25: 1.6}

BATCH = 32
RATE = 1e-4
Run = Callable[[], float]
Clock = Callable[[], float]


def timed(run: Run, clock: Clock) -> float:
    """Return the seconds of one run."""
    began = clock()
    run()
    return clock() - began


def clock_for(threads: int) -> Clock:
    """Return what to measure with: the process's own time does not count what others do meanwhile."""
    return time.process_time if threads == 1 else time.perf_counter


def take_turns(runs: dict[str, Run], seconds: float, clock: Clock) -> dict[str, list[float]]:
    """Run all of them once after the other until `seconds` are over, five times at least; return the seconds of each.

    One turn before is not counted.
    """
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(next(iter(taken.values()))) < 5:
        for name, run in runs.items():
            taken[name].append(timed(run, clock))
    return taken


def median_ratio(one: list[float], other: list[float]) -> float:
    """Return the median of the ratios of what was measured in the same turn."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def our_step(network: str, keep: float, backend: str, threads: int) -> tuple[Run, int]:
    """Return our training step, and its multiply-accumulates."""
    made, subset = prepare_step(Step(network, BATCH, keep, None))
    engine = Engine(made, backend)
    images, labels = batch()

    def run() -> float:
        return engine.step(images, labels, subset, lr=RATE, momentum=0.9, weight_decay=5e-4, threads=threads)

    return run, made.cost(subset, BATCH).macs


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Return images in CIFAR's shape and their labels."""
    rng = np.random.default_rng(0)
    return rng.random((BATCH, 3, 32, 32), dtype=np.float32), rng.integers(0, 10, BATCH)


def torch_steps(network: str, keep: float, *, onednn: bool) -> dict[str, Run]:
    """Return PyTorch's training steps by form and layout."""
    made, subset = prepare_step(Step(network, BATCH, keep, None))
    images, labels = batch()
    return {
        f"{form}, {'channels_last' if channels_last else 'NCHW'}{'' if onednn else ', without oneDNN'}": TorchStep(
            made, subset, images, labels, form=form, channels_last=channels_last, onednn=onednn, lr=RATE
        )
        for form in FORMS
        for channels_last in (False, True)
    }


def compare(network: str, keep: float, arguments: argparse.Namespace, *, without_onednn: bool) -> dict[str, Any]:
    """Return the medians of all, and the ratios of PyTorch's over ours."""
    clock = clock_for(arguments.threads)
    ours, macs = our_step(network, keep, arguments.backend, arguments.threads)
    runs: dict[str, Run] = {"ours": ours, **torch_steps(network, keep, onednn=True)}
    losses = {name: run() for name, run in runs.items()}  # all start from the same weights
    if max(abs(loss - losses["ours"]) for loss in losses.values()) > 1e-2:
        message = f"{network} keep {keep}: these do not compute the same: {losses}"
        raise SystemExit(message)
    taken = take_turns(runs, arguments.seconds, clock)
    ratios = {name: median_ratio(seconds, taken["ours"]) for name, seconds in taken.items()}
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    if without_onednn:
        for name, run in torch_steps(network, keep, onednn=False).items():
            # One step of these can take seconds; then the first one has to do.
            pairs = [(timed(run, clock), timed(ours, clock))]
            if pairs[0][0] < 1.0:
                pairs = [(timed(run, clock), timed(ours, clock)) for _ in range(3 if pairs[0][0] > 0.3 else 7)]
            medians[name] = statistics.median(pair[0] for pair in pairs)
            ratios[name] = statistics.median(pair[0] / pair[1] for pair in pairs)
    return {"network": network, "keep": keep, "macs": macs, "median_s": medians, "ratio": ratios}


def best(result: dict[str, Any], form: str, *, onednn: bool = True) -> tuple[str, float] | None:
    """Return the layout in which PyTorch computed this form fastest, and its ratio to ours."""
    candidates = [
        name for name in result["ratio"] if name.startswith(form) and name.endswith(", without oneDNN") is not onednn
    ]
    if not candidates:
        return None
    name = min(candidates, key=lambda name: result["median_s"][name])
    return name.split(", ")[1], result["ratio"][name]


def print_comparison(result: dict[str, Any]) -> None:
    """Print one line: our time, and PyTorch's over it."""
    network, keep = result["network"], result["keep"]
    cells = [f"{network:<13}{keep:>5}{result['median_s']['ours'] * 1e3:>9.1f}"]
    for form, onednn in (("selected", True), ("smaller", True), ("selected", False), ("smaller", False)):
        found = best(result, form, onednn=onednn)
        cells.append(" " * 20 if found is None else f"{found[1]:>6.2f} {found[0]:<13}")
    selected = best(result, "selected")
    assert selected is not None
    floor = FLOORS[network][KEEPS.index(keep)]
    cells.append(f"{floor:>5.2f} {verdict(selected[1] >= floor)}")
    without, wanted = best(result, "selected", onednn=False), FLOORS_WITHOUT_ONEDNN.get((network, keep))
    if without is not None and wanted is not None:
        cells.append(f"; without oneDNN {wanted:.1f} {verdict(without[1] >= wanted)}")
    print("".join(cells), flush=True)


def verdict(reached: bool) -> str:
    """Return a word for whether a floor was reached."""
    return "reached" if reached else "MISSED"


def time_per_mac(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare our step with our own step at full width: time should follow multiply-accumulates."""
    found = []
    clock = clock_for(arguments.threads)
    for network in (name for name in PER_MAC_NETWORKS if name in arguments.networks):
        steps = {keep: our_step(network, keep, arguments.backend, arguments.threads) for keep in (1.0, 0.5, 0.25)}
        taken = take_turns({str(keep): run for keep, (run, _) in steps.items()}, arguments.seconds, clock)
        for keep, ceiling in CEILINGS_PER_MAC.items():
            times = median_ratio(taken[str(keep)], taken["1.0"])
            macs = steps[keep][1] / steps[1.0][1]
            found.append({"network": network, "keep": keep, "time": times, "macs": macs, "ratio": times / macs})
            print(
                f"{network:<13}{keep:>5}: {times:.3f} of the time for {macs:.3f} of the MACs: {times / macs:.2f}, "
                f"ceiling {ceiling} {verdict(times / macs <= ceiling)}",
                flush=True,
            )
    return found


def second_thread(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare our step on one thread with the same step on two."""
    found: list[dict[str, Any]] = []
    if len(os.sched_getaffinity(0)) < 2:
        print("only one core may be used here: a second thread cannot be measured")
        return found
    for network in arguments.networks:
        for keep, floor in FLOORS_SECOND_THREAD.items():
            runs = {str(threads): our_step(network, keep, arguments.backend, threads)[0] for threads in (1, 2)}
            taken = take_turns(runs, arguments.seconds / 2, time.perf_counter)
            gain = median_ratio(taken["1"], taken["2"])
            found.append({"network": network, "keep": keep, "gain": gain})
            print(
                f"{network:<13}{keep:>5}: a second thread is worth {gain:.2f}, floor {floor} {verdict(gain >= floor)}",
                flush=True,
            )
    return found


def main() -> None:
    """Compare, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--keeps", nargs="+", type=float, choices=KEEPS, default=list(KEEPS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each network and share, oneDNN on")
    parser.add_argument("--quick", action="store_true", help="fewer turns, and only ResNet-20 without oneDNN")
    parser.add_argument("--backend", default="native", choices=["native", "reference"])
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 1.0)
    torch.set_num_threads(arguments.threads)
    machine, state = describe_machine(), read_state()
    print(
        f"{machine.processor}, {machine.cores} cores, load {state.load:.2f}; PyTorch {torch.__version__}, "
        f"{arguments.threads} thread(s), batch {BATCH}, medians of ratios of interleaved steps"
    )
    print("PyTorch's time over ours, by form and best layout; 'selected' with oneDNN is what the floors are for")
    print(
        f"{'network':<13}{'keep':>5}{'ours ms':>9} {'selected':<19} {'smaller':<19} {'selected, no oneDNN':<19} "
        f"{'smaller, no oneDNN':<19} floor"
    )
    results = []
    for network in arguments.networks:
        for keep in arguments.keeps:
            without = not arguments.quick or (network, keep) in FLOORS_WITHOUT_ONEDNN
            results.append(compare(network, keep, arguments, without_onednn=without))
            print_comparison(results[-1])
    print("\nour own time over our time at full width, divided by the ratio of multiply-accumulates")
    per_mac = time_per_mac(arguments)
    print("\nour time on one thread over our time on two")
    threads = second_thread(arguments)
    if arguments.json is not None:
        figures = {
            "processor": machine.processor,
            "load": state.load,
            "torch": torch.__version__,
            "threads": arguments.threads,
            "steps": results,
            "time_per_mac": per_mac,
            "second_thread": threads,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
