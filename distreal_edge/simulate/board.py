"""A board in virtual time: work is really done, and takes as long as its multiply-accumulates say."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from distreal_edge.device import Availability, Ran

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from distreal_edge.device import Trace

__all__ = ["VirtualBoard", "core_seconds_of"]


def core_seconds_of(macs: float, *, macs_per_s: float, overhead_macs: float) -> float:
    """Return the seconds that one core takes for a mini-batch of so many multiply-accumulates.

    `overhead_macs` stand for what a mini-batch takes whatever it trains: passes over memory, starting operations.
    """
    return (macs + overhead_macs) / macs_per_s


class VirtualBoard:
    """A board whose time passes only while it works or waits.

    Its free cores follow a trace, and each does `macs_per_s` multiply-accumulates in a second. Work runs on one thread
    of this machine, so that results do not depend on how many cores the board has.
    """

    emulated = True

    def __init__(self, trace: Trace, *, start_s: float, macs_per_s: float, overhead_macs: float) -> None:
        """Start at this time of the trace."""
        self._trace = trace
        self._now_s = start_s
        self._macs_per_s = macs_per_s
        self._overhead_macs = overhead_macs

    def now(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def availability(self) -> Availability:
        """Return what the trace has free now."""
        return Availability(cores=self._trace.at(self._now_s), memory_bytes=self._trace.memory_bytes_at(self._now_s))

    def run(self, work: Callable[[int], float], threads: int, macs: int = 0) -> Ran:
        """Do the work on one thread, and say when this board would have finished it. Work of no MACs takes no time."""
        result = work(1)
        if not macs:
            return Ran(result, 0.0, 0.0)
        core_seconds = core_seconds_of(macs, macs_per_s=self._macs_per_s, overhead_macs=self._overhead_macs)
        return Ran(result, self._trace.finish(self._now_s, core_seconds, threads) - self._now_s, core_seconds)

    def wait_until(self, time_s: float, stopped: Callable[[], bool]) -> None:  # noqa: ARG002 - nobody stops it
        """Let virtual time pass."""
        self._now_s = max(self._now_s, time_s)

    def call_at(self, time_s: float, action: Callable[[], object]) -> AbstractContextManager[object]:  # noqa: ARG002
        """Call nothing: whoever has work done here is told when it would have ended."""
        return nullcontext()
