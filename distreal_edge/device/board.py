"""The board under the trainer: its clock, what it can spare, and how long work takes on it.

The trainer knows no clock and no processor but this interface. The daemon hands it a real board, the demo one that
follows a trace; a simulator will hand it one in virtual time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from distreal_edge.device.monitor import Monitor
    from distreal_edge.device.trace import Trace

__all__ = ["Availability", "Board", "Ran", "RealBoard", "TraceBoard"]


@dataclass(frozen=True, slots=True)
class Ran:
    """What work gave and took: its result, seconds by the board's clock, and seconds of one core of the board."""

    result: float
    seconds: float
    core_seconds: float


@dataclass(frozen=True, slots=True)
class Availability:
    """What the board can spend right now: cores as a real number, and bytes of memory (None: not known)."""

    cores: float
    memory_bytes: float | None = None


class Board(Protocol):
    """Where a mini-batch runs."""

    def now(self) -> float:
        """Return the time in unix seconds."""

    def availability(self) -> Availability:
        """Return what can be spent now."""

    def run(self, work: Callable[[int], float], threads: int) -> Ran:
        """Do `work(threads)`."""


class RealBoard:
    """This very machine."""

    def __init__(self, monitor: Monitor) -> None:
        """Take availability from a monitor."""
        self._monitor = monitor

    def now(self) -> float:
        """Return the time in unix seconds."""
        return time.time()

    def availability(self) -> Availability:
        """Return what the monitor saw last."""
        return self._monitor.sample()

    def run(self, work: Callable[[int], float], threads: int) -> Ran:
        """Do the work and time it; it is taken to have had the cores that were free when it began."""
        cores = min(float(threads), self._monitor.sample().cores)
        start = time.monotonic()
        result = work(threads)
        seconds = time.monotonic() - start
        return Ran(result, seconds, seconds * cores)


class TraceBoard:
    """A board whose free cores follow a trace, each core `core_speed` times as fast as one here.

    Work is done on one thread here and its CPU time taken; the call returns when a board with the trace's cores would
    have finished. Other load on this machine therefore does not show, as long as there is some CPU left.
    """

    def __init__(self, trace: Trace, *, core_speed: float, stop: threading.Event) -> None:
        """Start the trace now. `stop` ends the wait for slow boards at once."""
        self._trace = trace
        self._core_speed = core_speed
        self._stop = stop
        self._start = time.monotonic()

    def now(self) -> float:
        """Return the time in unix seconds."""
        return time.time()

    def availability(self) -> Availability:
        """Return the cores that the trace has free now."""
        return Availability(cores=self._trace.at(time.monotonic() - self._start))

    def run(self, work: Callable[[int], float], threads: int) -> Ran:  # noqa: ARG002
        """Do the work on one thread, and wait until the emulated board would have finished it."""
        began = time.monotonic() - self._start
        cpu = time.thread_time()
        result = work(1)
        core_seconds = (time.thread_time() - cpu) / self._core_speed
        ends = self._trace.finish(began, core_seconds)
        # An emulated board without a free core at the end of its trace would wait for ever; an hour stands for that.
        self._stop.wait(min(max(0.0, ends - (time.monotonic() - self._start)), 3600.0))
        return Ran(result, time.monotonic() - self._start - began, core_seconds)
