"""How fast updates are checked and averaged on one core, and in how much memory.

    .venv/bin/python benchmarks/averaging.py --json averaging.json

A network like ResNet-18 (45 MB of float32), updates of 2, 8 and 32 devices in files as the aggregator stores them:
three quarters of the devices trained every element at some time, the others never more than 40 % of the filters.
Figures are megabytes of float32 changes per second of CPU time of this process, which has one thread: of checking
updates (`read_update`: once when they arrive, and once more before they are averaged), and of averaging files that were
checked. Memory is the highest resident memory (VmHWM, after /proc/self/clear_refs) over that before the model was
loaded, in models: old model, new model, and whatever else it takes. Every combination runs once in each of several
rounds, in an order by chance; the medians are printed.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distreal_edge.aggregator import AverageRule, average_updates
from distreal_edge.bench import describe_machine
from distreal_edge.device import Update, UpdateHeader, elements_of, encode_update, read_update
from distreal_edge.device.survivors import SurvivorLog
from distreal_edge.dropout import Draws
from distreal_edge.network import Network, PlanBuilder

if TYPE_CHECKING:
    from distreal_edge.network import Plan

KINDS = ("touch", "fedavg", "median", "trimmed_mean", "krum", "multi_krum")
ENCODINGS = (("float32", "none"), ("float16", "none"), ("int8", "none"), ("float32", "zstd"), ("int8", "zstd"))
DEVICES = (2, 8, 32)
DISTINCT = 8
STEPS = 24


def resnet18() -> Plan:
    """Return the plan of ResNet-18 for small images."""
    builder = PlanBuilder((3, 32, 32))
    value = builder.conv2d("conv1", builder.input, 64, kernel=3, padding=1, bias=False)
    value = builder.relu(builder.batch_norm("bn1", value))
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage and not block else 1
            inner = builder.conv2d(f"{name}.conv1", value, width, kernel=3, stride=stride, padding=1, bias=False)
            inner = builder.relu(builder.batch_norm(f"{name}.bn1", inner))
            inner = builder.conv2d(f"{name}.conv2", inner, width, kernel=3, padding=1, bias=False)
            inner = builder.batch_norm(f"{name}.bn2", inner)
            if stride == 2:
                value = builder.conv2d(f"{name}.short", value, width, kernel=1, stride=2, bias=False)
                value = builder.batch_norm(f"{name}.bn3", value)
            value = builder.relu(builder.add(value, inner))
    return builder.finish(builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), 10))


def make_update(plan: Plan, number: int, draw: str) -> Update:
    """Make the update of a device; every fourth never trains more than 40 % of the filters."""
    rng = np.random.default_rng(number)
    log, draws = SurvivorLog(plan), Draws(draw, plan.sizes, (number,), 1)
    for _ in range(STEPS):
        rate = float(rng.choice([0.6, 0.8] if number % 4 == 3 else [0.0, 0.3, 0.6]))
        log.add(draws([max(1, round((1 - rate) * size)) for size in plan.sizes]), 32)
    kept, images = log.arrays()
    changes = {}
    for name, parameter in plan.parameters.items():
        trained = parameter.images_per_element(kept, images) > 0
        changes[name] = (rng.standard_normal(parameter.shape, dtype=np.float32) * np.float32(1e-3)) * trained
    header = UpdateHeader(
        uid=f"u{number}", device=f"pi-{number}", round=1, model="a" * 64, images=32 * STEPS, mini_batches=STEPS
    )
    return Update(header, changes, {}, kept, images)


def resident(field: str) -> int:
    """Return what Linux says of this process's memory."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def measure(plan: Plan, paths: list[Path], kind: str, model: Path) -> dict[str, float]:
    """Check and average updates; return CPU seconds of both, and the memory of averaging in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back: it would hide what is taken
    before_bytes = resident("VmRSS")
    network = Network.load(model)
    began_s = time.process_time()
    readers = [read_update(path, plan) for path in paths]
    checked_s = time.process_time() - began_s
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    began_s = time.process_time()
    after = average_updates(plan, network.weights, readers, AverageRule(kind))  # type: ignore[arg-type]
    averaged_s = time.process_time() - began_s
    assert after["fc.weight"].shape == network.weights["fc.weight"].shape
    return {"check_s": checked_s, "average_s": averaged_s, "bytes": resident("VmHWM") - before_bytes}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--encodings", nargs="+", default=["+".join(each) for each in ENCODINGS])
    parser.add_argument("--draw", default="ordered")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    plan = resnet18()
    model_bytes = 4 * elements_of(plan)
    encodings = [each for each in ENCODINGS if "+".join(each) in arguments.encodings]
    with tempfile.TemporaryDirectory() as folder:
        Network.initialise(plan, 0).save(Path(folder) / "model.safetensors")
        paths: dict[tuple[str, str], list[Path]] = {each: [] for each in encodings}
        for number in range(min(DISTINCT, max(arguments.devices))):
            update = make_update(plan, number, arguments.draw)
            for encoding, compression in encodings:
                path = Path(folder) / f"{encoding}-{compression}-{number}.update"
                path.write_bytes(encode_update(update, encoding, compression))  # type: ignore[arg-type]
                paths[encoding, compression].append(path)
        sizes = {each: statistics.mean(path.stat().st_size for path in found) for each, found in paths.items()}
        found: dict[tuple[Any, ...], list[dict[str, float]]] = {}
        rng = np.random.default_rng(0)
        for _ in range(arguments.rounds):
            combinations = list(product(arguments.kinds, encodings, arguments.devices))
            for place in rng.permutation(len(combinations)):
                kind, encoding, devices = combinations[place]
                # The same file for several devices is the same work.
                files = [paths[encoding][number % DISTINCT] for number in range(devices)]
                taken = measure(plan, files, kind, Path(folder) / "model.safetensors")
                found.setdefault(combinations[place], []).append(taken)
    rows = []
    print(f"{model_bytes / 1e6:.1f} MB of float32, {arguments.draw} draws, medians of {arguments.rounds}")
    print("average       encoding      devices   file MB  check MB/s  average MB/s  both MB/s  memory, models")
    for (kind, encoding, devices), runs in sorted(found.items(), key=str):
        check_s, average_s = (statistics.median(run[what] for run in runs) for what in ("check_s", "average_s"))
        megabytes = devices * model_bytes / 1e6
        memory = statistics.median(run["bytes"] for run in runs) / model_bytes
        row = {
            "average": kind, "encoding": "+".join(encoding), "devices": devices, "file_bytes": sizes[encoding],
            "check_mb_s": megabytes / check_s, "average_mb_s": megabytes / average_s,
            "both_mb_s": megabytes / (check_s + average_s), "models": memory,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{kind:12s}  {row['encoding']:12s}  {devices:7d}   {sizes[encoding] / 1e6:7.1f}"
            f"  {row['check_mb_s']:10.0f}  {row['average_mb_s']:12.0f}  {row['both_mb_s']:9.0f}  {memory:14.2f}"
        )
    if arguments.json:
        machine = describe_machine()
        document = {"machine": str(machine), "draw": arguments.draw, "model_bytes": model_bytes, "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
