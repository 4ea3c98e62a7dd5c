"""What this machine can spare: the CPU time that nobody else uses, and the memory that is free."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from distreal_edge.device.board import Availability

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Monitor", "Readings", "read_machine"]

_INTERVAL_S = 0.25
_LEAST_CORES = 0.05
# A guest's time is counted by Linux as the guest's, and once more in user or nice.
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


@dataclass(frozen=True, slots=True)
class Readings:
    """What the machine's counters say at one moment.

    `own_s` and `busy_s` are the CPU seconds used so far by this process, and by everybody on the `cpus` CPUs that this
    process may run on; `memory_bytes` is what can still be had.
    """

    time_s: float
    cpus: int
    own_s: float
    busy_s: float
    memory_bytes: int


class Monitor:
    """Sample availability, at most four times a second; may be asked from any thread.

    Cores are those this process may run on, less what other processes used since the last sample, at most
    `most_cores`. Some are always reported: a process of lowest priority still gets crumbs on a busy machine.
    """

    def __init__(
        self,
        most_cores: float | None = None,
        *,
        read: Callable[[], Readings] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a first sample to compare with, by `read` (None: of this machine)."""
        self._most_cores = most_cores
        self._read = read_machine if read is None else read
        self._clock = clock
        self._lock = threading.Lock()
        self._last = self._read()
        self._latest = self._availability(float(self._last.cpus))

    def sample(self) -> Availability:
        """Return what can be spent now."""
        with self._lock:
            if self._clock() - self._last.time_s >= _INTERVAL_S:
                before, self._last = self._last, self._read()
                elapsed = self._last.time_s - before.time_s
                # While the CPUs that we may run on change, the two counts of others are of different CPUs.
                if elapsed > 0.0 and self._last.cpus == before.cpus:
                    others = (self._last.busy_s - before.busy_s) - (self._last.own_s - before.own_s)
                    self._latest = self._availability(self._last.cpus - max(0.0, others) / elapsed)
                else:
                    self._latest = self._availability(float(self._last.cpus))
            return self._latest

    def _availability(self, free: float) -> Availability:
        most = float(self._last.cpus) if self._most_cores is None else min(self._most_cores, float(self._last.cpus))
        return Availability(min(most, max(_LEAST_CORES, free)), float(self._last.memory_bytes))


def read_machine() -> Readings:
    """Read this machine's counters."""
    allowed = os.sched_getaffinity(0)
    times = psutil.cpu_times(percpu=True)
    busy = 0.0
    for cpu in allowed:
        if cpu < len(times):
            busy += sum(getattr(times[cpu], name, 0.0) for name in _BUSY)
    mine = psutil.Process().cpu_times()
    return Readings(
        time.monotonic(), len(allowed), mine.user + mine.system, busy, int(psutil.virtual_memory().available)
    )
