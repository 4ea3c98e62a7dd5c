"""The board under the trainer: its clock, what it can spare, and how long work takes on it.

The trainer knows no clock and no processor but this interface. The daemon hands it a real board, the demo one that
follows a trace, the simulator one in virtual time.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from distreal_edge.device.guest import confine_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from distreal_edge.device.monitor import Monitor
    from distreal_edge.device.trace import Trace

__all__ = ["Availability", "Board", "Ran", "RealBoard", "TraceBoard"]

_LOOK_S = 0.05
"""How soon a wait notices that it is no longer wanted."""
_LEAST_S = 1e-6
"""No work takes no time at all: what it took is divided by."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What work gave and took: its result, seconds by the board's clock, and seconds of one core of the board.

    `seconds` may be more than have passed: an emulated board is waited for, see `Board.wait_until`. Infinity stands for
    work that it would never finish.
    """

    result: float
    seconds: float
    core_seconds: float


@dataclass(frozen=True, slots=True)
class Availability:
    """What the board can spend right now, and what its owner may want to know with it.

    `cores` is a real number, `memory_bytes` what training may hold (None: not known). `paused` says why the owner
    forbids training now; there are no cores then. `temperature_c` is that of the hottest sensor (None: there is none),
    `throttled` whether the frequency is held down, `on_battery` whether a battery empties.
    """

    cores: float
    memory_bytes: float | None = None
    temperature_c: float | None = None
    throttled: bool = False
    on_battery: bool = False
    paused: str | None = None


class Board(Protocol):
    """Where a mini-batch runs.

    On an `emulated` board time passes as if: only when work is done does it know when it would have ended.
    """

    emulated: bool

    def now(self) -> float:
        """Return the time in unix seconds."""

    def availability(self) -> Availability:
        """Return what can be spent now; called from any thread."""

    def run(self, work: Callable[[int], float], threads: int, macs: int = 0) -> Ran:
        """Do `work(threads)`: so many multiply-accumulates, of which a board in virtual time makes its time."""

    def wait_until(self, time_s: float, stopped: Callable[[], bool]) -> None:
        """Let time pass until then, or until `stopped()`."""

    def call_at(self, time_s: float, action: Callable[[], object]) -> AbstractContextManager[object]:
        """Call `action` at that time in another thread, unless the context was left; never on an emulated board."""


class RealBoard:
    """This very machine. Its threads work on the CPUs that others use least."""

    emulated = False

    def __init__(self, monitor: Monitor) -> None:
        """Take availability from a monitor."""
        self._monitor = monitor
        self._confined: frozenset[int] = frozenset()

    def now(self) -> float:
        """Return the time in unix seconds."""
        return time.time()

    def availability(self) -> Availability:
        """Return what the monitor saw last."""
        return self._monitor.sample()

    def run(self, work: Callable[[int], float], threads: int, macs: int = 0) -> Ran:  # noqa: ARG002 - time is measured
        """Do the work on the quietest CPUs, and time it by the clock and by the CPU time that this process took."""
        self._confine(self._monitor.quiet_cpus()[:threads])
        start, cpu_start = time.monotonic(), time.process_time()
        result = work(threads)
        seconds, cpu_s = time.monotonic() - start, time.process_time() - cpu_start
        return Ran(result, seconds, max(_LEAST_S, min(cpu_s, seconds * threads)))

    def _confine(self, cpus: tuple[int, ...]) -> None:
        # Threads that are started later begin where the thread runs that starts them.
        if cpus and self._confined != frozenset(cpus):
            self._confined = frozenset(cpus)
            confine_threads(cpus)
            self._monitor.confined = self._confined

    def wait_until(self, time_s: float, stopped: Callable[[], bool]) -> None:
        """Sleep until then, or until `stopped()`."""
        while (left_s := time_s - time.time()) > 0.0 and not stopped():
            time.sleep(min(_LOOK_S, left_s))

    @contextmanager
    def call_at(self, time_s: float, action: Callable[[], object]) -> Iterator[None]:
        """Call `action` at that time, in a thread that ends with the context."""
        timer = threading.Timer(min(max(0.0, time_s - time.time()), threading.TIMEOUT_MAX), action)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class TraceBoard:
    """A board that has free what a trace says, each core `core_speed` times as fast as one here.

    Work is done on one thread here and its CPU time taken; `Ran.seconds` is what a board with the trace's cores, and
    with as many threads as were asked for, would have taken. Other load on this machine therefore does not show, as
    long as there is some CPU left.
    """

    emulated = True

    def __init__(self, trace: Trace, *, core_speed: float, stop: threading.Event) -> None:
        """Start the trace now. `stop` ends every wait at once."""
        self._trace = trace
        self._core_speed = core_speed
        self._stop = stop
        self._start = time.monotonic()

    def now(self) -> float:
        """Return the time in unix seconds."""
        return time.time()

    def availability(self) -> Availability:
        """Return what the trace has free now."""
        second = time.monotonic() - self._start
        return Availability(
            cores=self._trace.at(second),
            memory_bytes=self._trace.memory_bytes_at(second),
            temperature_c=self._trace.temperature_c_at(second),
        )

    def run(self, work: Callable[[int], float], threads: int, macs: int = 0) -> Ran:  # noqa: ARG002 - time is measured
        """Do the work on one thread, and say when the emulated board would have finished it."""
        began = time.monotonic() - self._start
        cpu = time.thread_time()
        result = work(1)
        core_seconds = (time.thread_time() - cpu) / self._core_speed
        return Ran(result, self._trace.finish(began, core_seconds, threads) - began, core_seconds)

    def wait_until(self, time_s: float, stopped: Callable[[], bool]) -> None:
        """Wait until then, or until `stopped()` or the stop event says otherwise."""
        while (left_s := time_s - time.time()) > 0.0 and not stopped():
            if self._stop.wait(min(_LOOK_S, left_s)):
                return

    def call_at(self, _time_s: float, _action: Callable[[], object]) -> AbstractContextManager[object]:
        """Call nothing: whoever has work done here is told when it would have ended."""
        return nullcontext()
