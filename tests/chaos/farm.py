"""A federation of real programs on this machine: an aggregator, devices with a few images, a tiny network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distreal_edge.network import Network, PlanBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from distreal_edge.transport import EmbeddedBroker

WAIT_S = 60.0
SOURCES = Path(__file__).resolve().parents[2]
FEDERATION = """
federation = "farm"
state = "{folder}/aggregator"
network.file = "{folder}/network.safetensors"
broker.port = {port}
[rounds]
{rounds}
[training]
most_epochs = 1
"""
DEVICE = """
federation = "farm"
device = "{name}"
state = "{folder}/{name}"
broker.port = {port}
[data]
name = "npz"
root = "{folder}/train.npz"
"""


def tiny_network() -> Network:
    """Return a network of three hundred weights for images of 1 x 6 x 6."""
    builder = PlanBuilder((1, 6, 6))
    value = builder.relu(builder.conv2d("conv", builder.input, 4, kernel=3))
    return Network.initialise(builder.finish(builder.linear("fc", builder.flatten(value), 3)), 0)


def wait_for(what: Callable[[], Any], why: str, seconds: float = WAIT_S) -> Any:
    """Return what `what` says once it says something; raise `AssertionError` when it does not in time."""
    until_s = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until_s, f"waited in vain: {why}"
        time.sleep(0.02)
    return found


@dataclass
class Farm:
    """The programs, and their files in `folder`."""

    folder: Path
    broker: EmbeddedBroker
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Write down what they train."""
        tiny_network().save(self.folder / "network.safetensors")
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (24, 6, 6), dtype=np.uint8), rng.integers(0, 3, 24)
        np.savez(self.folder / "train.npz", images=images, labels=labels, classes=3)

    @property
    def state(self) -> Path:
        return self.folder / "aggregator"

    def aggregator(self, environment: Mapping[str, str] | None = None, **rounds: float) -> subprocess.Popen[bytes]:
        """Start the aggregator; with `rounds` its configuration is written anew."""
        path = self.folder / "federation.toml"
        if rounds:
            lines = "\n".join(f"{key} = {value}" for key, value in rounds.items())
            path.write_text(FEDERATION.format(folder=self.folder, port=self.broker.port, rounds=lines))
        return self._start("aggregator", ["aggregate", "--config", str(path)], environment)

    def device(self, name: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a device."""
        path = self.folder / f"{name}.toml"
        path.write_text(DEVICE.format(folder=self.folder, port=self.broker.port, name=name))
        return self._start(name, ["run", "--config", str(path)], environment)

    def log(self, name: str) -> str:
        """Return all that a program has said, in all its starts."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def kill(self, name: str) -> None:
        """End a program as a power cut or the kernel would."""
        self.running[name].kill()
        self.running[name].wait(WAIT_S)

    def end(self) -> None:
        """End all programs."""
        for program in self.running.values():
            if program.poll() is None:
                program.send_signal(signal.SIGCONT)
                program.kill()
                program.wait(WAIT_S)

    def _start(self, name: str, arguments: list[str], environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "distreal_edge", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=SOURCES,
                env={**(environment or os.environ), "OMP_NUM_THREADS": "1"},
            )
        return self.running[name]
