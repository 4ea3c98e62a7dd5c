"""Compare the memory of a training step with PyTorch's: each by how much a fresh process grows.

    .venv/bin/python benchmarks/memory.py --json memory.json

Every figure is of a process of its own. It imports what it needs, trains a tiny network, so that code is loaded and
pools are started, and makes the network. Then Linux is asked to forget the highest resident memory so far
(/proc/self/clear_refs), and after five steps for the highest since (VmHWM): the growth over the resident memory before
(VmRSS) is what images, weights, momentum, gradients, values and whatever else of a step take. One thread, a batch of 32
images in CIFAR's shape. Of PyTorch's two forms and two layouts (torch_step.py) the smallest counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distreal_edge import Engine, Network, PlanBuilder
from distreal_edge.bench import Step, describe_machine, prepare_step
from distreal_edge.dropout import Subset

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORKS = ("resnet20", "vgg_small", "densenet40", "mobilenet_v2")
KEEPS = (1.0, 0.5)
TORCH = ("smaller NCHW", "smaller channels_last", "selected NCHW", "selected channels_last")
FLOOR = 0.6
BATCH = 32
STEPS = 5
RATE = 1e-4


def resident(field: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    message = f"/proc/self/status has no {field}"
    raise SystemExit(message)


def make_step(who: str, network: Network, subset: Subset) -> Callable[[], float]:
    """Return one training step, of ours ('native', 'reference') or of PyTorch."""
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, *network.plan.input_shape), dtype=np.float32)  # N, C, H, W
    labels = rng.integers(0, network.plan.classes, BATCH)
    if who in ("native", "reference"):
        engine = Engine(network, who)
        return lambda: engine.step(images, labels, subset, lr=RATE)
    from torch_step import TorchStep  # noqa: PLC0415 - our own process must not load PyTorch

    form, layout = who.split()
    return TorchStep(network, subset, images, labels, form=form, channels_last=layout == "channels_last", lr=RATE)


def tiny() -> Network:
    """Return a network with a bit of everything."""
    builder = PlanBuilder((3, 8, 8))
    value = builder.relu(builder.batch_norm("bn", builder.conv2d("conv", builder.input, 8, kernel=3, padding=1)))
    value = builder.conv2d("depthwise", value, 8, kernel=3, padding=1, groups=8)
    value = builder.add(value, builder.conv2d("narrow", value, 8, kernel=1))
    value = builder.flatten(builder.max_pool(value, kernel=2))
    return Network.initialise(builder.finish(builder.linear("fc", value, 10), rescale=False))


def grow(who: str, name: str, keep: float) -> None:
    """Print, in a process of its own, by how many bytes training makes it grow."""
    if " " in who:
        import torch  # noqa: PLC0415

        torch.set_num_threads(1)
    network, subset = prepare_step(Step(name, BATCH, keep, None))
    small = tiny()
    run = make_step(who, small, Subset.full(small.plan.sizes))
    for _ in range(STEPS):
        run()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    run = make_step(who, network, subset)
    for _ in range(STEPS):
        run()
    cost = network.cost(subset, BATCH)
    print(json.dumps({"growth": resident("VmHWM") - before, "before": before, "predicted": cost.peak_bytes}))


def measure(who: str, network: str, keep: float, times: int) -> dict[str, int]:
    """Return the median growth of several fresh processes."""
    figures = []
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, __file__, "--grow", who, network, str(keep)],
            stdout=subprocess.PIPE,
            check=True,
        )
        figures.append(json.loads(done.stdout))
    return {field: int(statistics.median(figure[field] for figure in figures)) for field in figures[0]}


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--times", type=int, default=3, help="processes each; their median counts")
    parser.add_argument("--backend", default="native", choices=["native", "reference"])
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    parser.add_argument("--grow", nargs=3, metavar=("WHO", "NETWORK", "KEEP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grow is not None:
        who, network, keep = arguments.grow
        grow(who, network, float(keep))
        return
    print(
        f"{describe_machine().processor}; growth of resident memory in a fresh process, MB; batch {BATCH}, one thread"
    )
    columns = f"{'network':<13}{'keep':>5}{'ours':>8}{'predicted':>11}{'PyTorch':>9}  {'which':<22}{'ratio':>6}"
    print(f"{columns}  at most {FLOOR}")
    results = []
    for network in arguments.networks:
        for keep in KEEPS:
            ours = measure(arguments.backend, network, keep, arguments.times)
            theirs = {who: measure(who, network, keep, arguments.times)["growth"] for who in TORCH}
            smallest = min(theirs, key=theirs.__getitem__)
            ratio = ours["growth"] / theirs[smallest]
            found: dict[str, Any] = {"network": network, "keep": keep, "ours": ours, "torch": theirs, "ratio": ratio}
            results.append(found)
            verdict = "reached" if ratio <= FLOOR else "MISSED"
            print(
                f"{network:<13}{keep:>5}{ours['growth'] / 1e6:>8.1f}{ours['predicted'] / 1e6:>11.1f}"
                f"{theirs[smallest] / 1e6:>9.1f}  {smallest:<22}{ratio:>6.2f}  {verdict}",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"floor": FLOOR, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
