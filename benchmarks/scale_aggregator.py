"""A real aggregator that writes down what each of its rounds took; `benchmarks/scale.py` runs it in a process.

    python benchmarks/scale_aggregator.py '{"port": 1883, "state": "...", "rounds": 3, "least": 10, "selected": null}'

It averages a network of 61,706 weights, which is one chunk. It prints a JSON list of its rounds when they are over.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

import contextlib
import json
import logging
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distreal_edge.aggregator import Aggregator, Lesson, RoundSettings, server
from distreal_edge.aggregator.finishing import Finishing
from distreal_edge.aggregator.reception import Reception
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search import uniform_table
from distreal_edge.transport import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from distreal_edge.aggregator.finishing import Made
    from distreal_edge.transport import Manifest, Message

SECONDS = 600.0
TCP_INFO_BYTES = struct.Struct("=120xQQ")  # tcpi_bytes_acked, tcpi_bytes_received


def lenet() -> Network:
    """Return LeNet-5 for images of 1 x 32 x 32, 61,706 weights: they and their header fit into one chunk."""
    builder = PlanBuilder((1, 32, 32))
    value = builder.relu(builder.conv2d("conv1", builder.input, 6, kernel=5))
    value = builder.relu(builder.conv2d("conv2", builder.max_pool(value, kernel=2, stride=2), 16, kernel=5))
    value = builder.flatten(builder.max_pool(value, kernel=2, stride=2))
    value = builder.relu(builder.linear("fc1", value, 120))
    value = builder.relu(builder.linear("fc2", value, 84))
    return Network.initialise(builder.finish(builder.linear("fc3", value, 10)), 0)


TAKEN: Counter[str] = Counter()
"""Seconds of CPU and of wall clock, messages and bytes since the start, by name."""


@contextlib.contextmanager
def counted(name: str) -> Iterator[None]:
    """Count what the block takes in its thread."""
    wall_s, cpu_s = time.monotonic(), time.thread_time()
    try:
        yield
    finally:
        TAKEN[f"{name}_wall_s"] += time.monotonic() - wall_s  # type: ignore[assignment] - counters of seconds as well
        TAKEN[f"{name}_cpu_s"] += time.thread_time() - cpu_s  # type: ignore[assignment] - as above


def timed(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a method that counts what it takes."""

    def call(*arguments: Any, **named: Any) -> Any:
        with counted(name):
            return method(*arguments, **named)

    return call


def sending(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a session that counts the messages it sends."""

    def call(*arguments: Any, **named: Any) -> Any:
        TAKEN["messages_out"] += 1
        return method(*arguments, **named)

    return call


class MeasuredFinishing(Finishing):
    """Averaging whose CPU time is counted."""

    __slots__ = ()

    def _run(self) -> None:
        with counted("averaging"):
            Finishing._run(self)  # noqa: SLF001 - `super()` has no class to start from where a dataclass has slots


class MeasuredAggregator(Aggregator):
    """An aggregator that notes where it stands when a round opens, closes and is done."""

    def __init__(self, **arguments: Any) -> None:
        """Take what an Aggregator takes; `port` is the broker's."""
        super().__init__(**arguments)
        self._port = arguments["broker"]["port"]
        self.rounds: list[dict[str, Any]] = []

    def _message(self, message: Message) -> None:
        TAKEN["messages_in"] += 1
        with counted("message"):
            super()._message(message)

    def _announce(self, manifest: Manifest, images: Mapping[str, int]) -> None:
        if self.rounds:
            self.rounds[-1]["after"] = self._figures()
        self.rounds.append({"selected": len(manifest.selected), "opened": self._figures()})
        super()._announce(manifest, images)

    def _close(self, why: str, now: float) -> None:
        self.rounds[-1]["closing"] = self._figures()
        super()._close(why, now)

    def _closed(self, made: Made) -> None:
        super()._closed(made)
        self.rounds[-1] |= {"answered": len(made.closed.record.answered), "closed": self._figures(), **made.metrics}

    def _finish(self) -> bool:
        self.rounds[-1].setdefault("after", self._figures())
        return super()._finish()

    def _figures(self) -> dict[str, float]:
        threads = {thread.name.partition(" ")[0]: thread.ident for thread in threading.enumerate()}
        (network,) = (ident for name, ident in threads.items() if name == "mqtt")
        assert network is not None
        resident = {
            line.split(":")[0]: int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            if line.startswith(("VmRSS", "VmHWM"))
        }
        sent, received = socket_bytes(self._port)
        return {
            "wall_s": time.monotonic(),
            "main_cpu_s": time.thread_time(),
            "network_cpu_s": time.clock_gettime(time.pthread_getcpuclockid(network)),
            "process_cpu_s": time.process_time(),
            "bytes_out": sent,
            "bytes_in": received,
            "written_blocks": resource.getrusage(resource.RUSAGE_SELF).ru_oublock,
            **resident,
            **TAKEN,
        }


def socket_bytes(port: int) -> tuple[int, int]:
    """Return what the connection to the broker has sent and received, headers of MQTT included and of TCP not."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not str(descriptor.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(descriptor.name))) as found:
                if found.family == socket.AF_INET and found.getpeername()[1] == port:
                    info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES.size)
                    return TCP_INFO_BYTES.unpack(info)
    return 0, 0


def main() -> None:
    """Serve the rounds, and print what they took."""
    asked = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Reception.take = timed(Reception.take, "storing")  # type: ignore[method-assign]
    Reception.offered = timed(Reception.offered, "storing")  # type: ignore[method-assign]
    Session.publish = sending(Session.publish)  # type: ignore[method-assign]
    Session.publish_retained = sending(Session.publish_retained)  # type: ignore[method-assign]
    server.Finishing = MeasuredFinishing  # type: ignore[misc]
    network = lenet()
    aggregator = MeasuredAggregator(
        federation="scale",
        network=network,
        table=uniform_table(network, rows=4),
        settings=RoundSettings(
            number=asked["rounds"],
            seconds=SECONDS,
            upload_seconds=SECONDS / 2,
            least_devices=asked["least"],
            devices_per_round=asked["selected"],
            seed=0,
        ),
        lesson=Lesson(
            batch=32,
            lr=0.1,
            final_lr=None,
            momentum=0.9,
            weight_decay=0.0,
            epochs=1.0,
            most_epochs=1.0,
            statistics_images=0,
            average="touch",
            ceilings=((0.0, 1.0),),
        ),
        state=Path(asked["state"]),
        broker={"host": "127.0.0.1", "port": asked["port"]},
    )
    if asked.get("profile"):
        import cProfile  # noqa: PLC0415 - a round that is profiled takes twice as long

        profile = cProfile.Profile()
        profile.runcall(aggregator.run, stop)
        profile.dump_stats(asked["profile"])
    else:
        aggregator.run(stop)
    print(json.dumps(aggregator.rounds))


if __name__ == "__main__":
    main()
