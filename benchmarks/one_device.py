"""A federation with one real device on this machine, for benchmarks that watch it: broker, aggregator, device."""

from __future__ import annotations

import csv
import math
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.data import load_dataset
from distreal_edge.demo.processes import Processes
from distreal_edge.engine import Engine
from distreal_edge.transport import EmbeddedBroker
from distreal_edge.zoo import resnet20

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLE = "resnet20-cifar10-ordered"
DATA = "cifar10"
BATCH = 32
PATIENCE_S = 60.0

FEDERATION = """
federation = "watched"
state = "{folder}/aggregator"
broker.port = {port}
[network]
zoo = "resnet20"
[table]
name = "{table}"
[rounds]
number = 1000
seconds = {seconds}
upload_seconds = 2
[training]
batch = {batch}
epochs = {epochs}
most_epochs = {epochs}
statistics_images = 64
"""
DEVICE = """
federation = "watched"
device = "board"
state = "{folder}/device"
log_steps = true
broker.port = {port}
[data]
name = "{data}"
"""


@dataclass(frozen=True, slots=True)
class Step:
    """A mini-batch of the device's steps.csv: when it was decided (Unix time), and what."""

    time_s: float
    cores: float
    share: float
    seconds: float
    threads: int


@dataclass(frozen=True, slots=True)
class Device:
    """The running device: its folder, and the number of mini-batches that it plans for a round."""

    folder: Path
    planned: int

    def steps(self) -> list[Step]:
        """Return all mini-batches so far."""
        path = self.folder / "device" / "steps.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
        return [
            Step(
                *(float(row[name]) for name in ("time_s", "cores", "share")), int(row["threads"]), float(row["seconds"])
            )
            for row in rows
        ]


@contextmanager
def one_device(folder: Path, *, round_s: float, of_full: float, most_threads: int) -> Iterator[Device]:
    """Run a federation of one device, which trains once this is entered.

    Rounds are so long, and so full of mini-batches, that each has `of_full` of the time that one of the full network
    takes with `most_threads` threads on free cores.
    """
    images = len(load_dataset(DATA, split="train"))
    planned = round(round_s / (of_full * full_step_s(most_threads)))
    with EmbeddedBroker() as broker, Processes() as processes:
        words = {"folder": folder, "port": broker.port, "table": TABLE, "batch": BATCH, "data": DATA}
        epochs = max(1e-3, planned * BATCH / images)
        (folder / "federation.toml").write_text(FEDERATION.format(**words, seconds=round_s, epochs=f"{epochs:.6f}"))
        (folder / "device.toml").write_text(DEVICE.format(**words))
        for verb, config in (("aggregate", "federation.toml"), ("run", "device.toml")):
            command = [sys.executable, "-m", "distreal_edge", verb, "--config", str(folder / config)]
            processes.start(verb, command, folder / f"{verb}.log")
        device = Device(folder, planned)
        until_s = time.monotonic() + PATIENCE_S
        while not device.steps():
            if time.monotonic() > until_s or processes.ended():
                logs = "".join(log.read_text(encoding="utf-8") for log in sorted(folder.glob("*.log")))
                raise SystemExit(f"the device does not train:\n{logs}")
            time.sleep(0.2)
        yield device


def full_step_s(threads: int) -> float:
    """Return the seconds of a mini-batch of the full network on this machine, the best of a few."""
    network = resnet20(seed=0)
    engine = Engine(network)
    rng = np.random.default_rng(0)
    subset = network.draw((0.0,) * len(network.groups), rng)
    images = rng.integers(0, 256, (BATCH, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, BATCH)
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        engine.step(images, labels, subset, lr=1e-4, threads=threads)
        best = min(best, time.perf_counter() - began)
    return best
