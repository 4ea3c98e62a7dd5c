"""What this machine can spare: the CPU time that nobody else uses, and the memory that is free."""

from __future__ import annotations

import os
import time

import psutil

from distreal_edge.device.board import Availability

__all__ = ["Monitor"]

_INTERVAL_S = 0.25
_LEAST_CORES = 0.05


class Monitor:
    """Sample availability, at most four times a second.

    Cores are those this process may run on, less what other processes used since the last sample, at most
    `most_cores`. Some are always reported: a process of lowest priority still gets crumbs on a busy machine.
    """

    def __init__(self, most_cores: float | None = None) -> None:
        """Take a first sample to compare with."""
        self._process = psutil.Process()
        self._allowed = len(os.sched_getaffinity(0))
        self._most = float(self._allowed) if most_cores is None else min(float(self._allowed), most_cores)
        self._time = time.monotonic()
        self._own, self._busy = self._used()
        self._latest = Availability(self._most, float(psutil.virtual_memory().available))

    def sample(self) -> Availability:
        """Return what can be spent now."""
        now = time.monotonic()
        elapsed = now - self._time
        if elapsed >= _INTERVAL_S:
            own, busy = self._used()
            others = max(0.0, (busy - self._busy) - (own - self._own)) / elapsed
            cores = min(self._most, max(_LEAST_CORES, self._allowed - others))
            self._time, self._own, self._busy = now, own, busy
            self._latest = Availability(cores, float(psutil.virtual_memory().available))
        return self._latest

    def _used(self) -> tuple[float, float]:
        """Return the CPU seconds used so far by this process, and by all of them on the CPUs allowed to it."""
        times = psutil.cpu_times(percpu=True)
        busy = 0.0
        for cpu in os.sched_getaffinity(0):
            if cpu < len(times):
                each = times[cpu]
                busy += sum(each) - each.idle - getattr(each, "iowait", 0.0) - getattr(each, "guest", 0.0)
        mine = self._process.cpu_times()
        return mine.user + mine.system, busy
