"""A federation of real programs on this machine: an aggregator, devices with a few images, a tiny network."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from distreal_edge.network import Network, PlanBuilder
from distreal_edge.transport import (
    Ack,
    AggregatorHealth,
    AggregatorTopic,
    DeviceTopic,
    Manifest,
    Message,
    Offer,
    RoundTopic,
    Session,
    Topics,
    decode,
)

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
{training}
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


def _lines(keys: Mapping[str, object]) -> str:
    return "\n".join(f"{key} = {value}" for key, value in keys.items())


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

    def aggregator(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        training: Mapping[str, object] | None = None,
        **rounds: float,
    ) -> subprocess.Popen[bytes]:
        """Start the aggregator; with `rounds` its configuration is written anew."""
        path = self.folder / "federation.toml"
        if rounds:
            tables = {"rounds": _lines(rounds), "training": _lines(training or {})}
            path.write_text(FEDERATION.format(folder=self.folder, port=self.broker.port, **tables))
        return self._start("aggregator", ["aggregate", "--config", str(path)], environment)

    def device(
        self, name: str, environment: Mapping[str, str] | None = None, *, port: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a device; `port` is where it finds the broker, when that is not the broker's own."""
        path = self.folder / f"{name}.toml"
        path.write_text(DEVICE.format(folder=self.folder, port=port or self.broker.port, name=name))
        return self._start(name, ["run", "--config", str(path)], environment)

    def log(self, name: str) -> str:
        """Return all that a program has said, in all its starts."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait_said(self, name: str, words: str, since: int = 0, seconds: float = WAIT_S) -> None:
        """Wait until a program has said something after so many characters of its log."""
        try:
            wait_for(lambda: words in self.log(name)[since:], words, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; {name} said: {self.log(name)[since:]}") from None

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
        return self.start(name, [sys.executable, "-m", "distreal_edge", *arguments], environment)

    def start(
        self, name: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start any command in the name of a program."""
        with (self.folder / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=SOURCES,
                env={**(environment or os.environ), "OMP_NUM_THREADS": "1"},
            )
        return self.running[name]


class Listener:
    """Hear what a federation says, with the time at which it was heard; a context manager."""

    def __init__(self, broker: EmbeddedBroker, topics: Topics) -> None:
        """Prepare to listen."""
        self._session = Session(host=broker.host, port=broker.port, client_id="listener")
        self._topics = topics
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self.manifests: list[tuple[float, Manifest]] = []
        self.health: list[tuple[float, AggregatorHealth]] = []
        self.offered: dict[str, Offer] = {}
        self.acks: list[tuple[str, Ack]] = []

    def __enter__(self) -> Self:
        """Begin."""
        self._session.__enter__()
        self._session.wait_connected(WAIT_S)
        everything = f"{self._topics.round.removesuffix('round')}#"
        self._session.subscribe(everything).wait(WAIT_S)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._end.set()
        self._thread.join(WAIT_S)
        self._session.close()

    def answers(self, kind: str) -> set[str]:
        """Return which updates were answered so."""
        return {ack.uid for _, ack in list(self.acks) if ack.kind == kind}

    def _listen(self) -> None:
        while not self._end.is_set():
            try:
                event = self._session.events.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(event, Message):
                self._hear(event, time.time())

    def _hear(self, message: Message, now: float) -> None:
        match self._topics.parse(message.topic):
            case RoundTopic():
                self.manifests.append((now, decode(Manifest, message.payload, where=message.topic)))
            case AggregatorTopic("health"):
                self.health.append((now, decode(AggregatorHealth, message.payload, where=message.topic)))
            case DeviceTopic(_, "offer"):
                offer = decode(Offer, message.payload, where=message.topic)
                self.offered[offer.uid] = offer
            case DeviceTopic(device, "ack"):
                self.acks.append((device, decode(Ack, message.payload, where=message.topic)))
