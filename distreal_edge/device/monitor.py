"""What this machine can spare right now, within what its owner allows."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from distreal_edge.device.board import Availability
from distreal_edge.device.owner import OwnerLimits, is_too_hot, pause_reason
from distreal_edge.device.spare import most_cores, quiet_cpus, spare_bytes, spare_cores
from distreal_edge.machine import MachineReader, Roots, own_affinity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Monitor"]

_log = logging.getLogger(__name__)
_INTERVAL_S: Final = 0.25
_WINDOW_S: Final = 0.5
"""A change shows in full after this and an interval. `benchmarks/monitor.py` compares it with others."""
_CONDITIONS_S: Final = 1.0
"""Memory, heat and power change slowly, and some sensors are slow to read."""
_LEAST_CORES: Final = 0.05


class Monitor:
    """Sample availability, at most four times a second; may be asked from any thread.

    Cores are those this process may run on, less what others used of them in the last half second, at most the quotas
    of its control groups and the owner's limit; `device/spare.py` has the arithmetic. Some are always reported unless
    the owner forbids training: a process of lowest priority still gets crumbs on a busy machine.

    Counters are read when somebody asks. Whoever asks seldom gets an average over the time since the last question; a
    thread that runs `follow` keeps it fresh.
    """

    def __init__(
        self,
        limits: OwnerLimits | None = None,
        *,
        roots: Roots | None = None,
        affinity: Callable[[], Iterable[int]] = own_affinity,
        own_s: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
        minute: Callable[[], int] | None = None,
        window_s: float = _WINDOW_S,
    ) -> None:
        """Take a first reading to compare with.

        What this process holds in memory now, with its images and before any training, counts as held for good.
        `own_s` is the CPU time of this process, `minute` the minute of the day on the owner's clock.
        """
        self._limits = OwnerLimits() if limits is None else limits
        self._clock = clock
        self._minute = _minute_of_day if minute is None else minute
        self._window_s = window_s
        self._reader = MachineReader(Roots() if roots is None else roots, affinity=affinity, own_s=own_s, clock=clock)
        self.confined: frozenset[int] = frozenset()
        """The CPUs on which this process's threads were told to run; empty: on all that it may use."""
        self._lock = threading.Lock()
        self._readings = deque([self._reader.counters()])
        self._conditions = self._reader.conditions()
        self._conditions_due_s = self._readings[0].time_s + _CONDITIONS_S
        self._resident_at_start = self._conditions.resident_bytes
        self._too_hot = False
        self._paused: str | None = None
        self._warn_of_limits()
        self._latest = self._availability()

    def sample(self) -> Availability:
        """Return what can be spent now."""
        with self._lock:
            if self._clock() - self._readings[-1].time_s >= _INTERVAL_S:
                self._read()
                self._latest = self._availability()
            return self._latest

    def quiet_cpus(self) -> tuple[int, ...]:
        """Return the CPUs that this process may run on, those first that others used least of late."""
        with self._lock:
            return quiet_cpus(self._readings[0], self._readings[-1], self.confined)

    def follow(self, stop: threading.Event) -> None:
        """Sample four times a second until `stop`, in the calling thread."""
        while not stop.wait(_INTERVAL_S):
            self.sample()

    def _read(self) -> None:
        now = self._reader.counters()
        self._readings.append(now)
        # The window begins at the last reading that is old enough, give or take half an interval.
        old_s = now.time_s - self._window_s + _INTERVAL_S / 2.0
        while len(self._readings) > 2 and self._readings[1].time_s <= old_s:
            self._readings.popleft()
        if now.time_s >= self._conditions_due_s:
            self._conditions_due_s = now.time_s + _CONDITIONS_S
            self._conditions = self._reader.conditions()

    def _availability(self) -> Availability:
        now, conditions, limits = self._readings[-1], self._conditions, self._limits
        most = min(most_cores(now), limits.most_cores or float("inf"))
        cores = min(most, max(_LEAST_CORES, spare_cores(self._readings[0], now)))
        memory_bytes = spare_bytes(conditions, self._resident_at_start)
        if limits.most_memory_bytes is not None:
            left = max(0.0, limits.most_memory_bytes - (self._resident_at_start or 0))
            memory_bytes = left if memory_bytes is None else min(left, memory_bytes)
        self._too_hot = is_too_hot(limits, conditions.temperature_c, was=self._too_hot)
        paused = pause_reason(
            limits,
            minute=self._minute(),
            too_hot=self._too_hot,
            on_battery=conditions.on_battery,
            pause_file_exists=self._pause_file_exists(),
        )
        if paused != self._paused:
            self._paused = paused
            if paused is None:
                _log.info("training resumes")
            else:
                _log.info("training pauses: %s", paused)
        return Availability(
            cores=cores if paused is None else 0.0,
            memory_bytes=memory_bytes,
            temperature_c=conditions.temperature_c,
            throttled=conditions.throttled,
            on_battery=conditions.on_battery,
            paused=paused,
        )

    def _pause_file_exists(self) -> bool | None:
        if self._limits.pause_file is None:
            return False
        try:
            return self._limits.pause_file.exists()
        except OSError:
            return None

    def _warn_of_limits(self) -> None:
        limits, held = self._limits, self._resident_at_start
        if limits.highest_temperature_c is not None and self._conditions.temperature_c is None:
            _log.warning("highest_temperature_c: this machine tells no temperature, so it pauses nothing")
        if limits.most_memory_bytes is not None and held is not None and limits.most_memory_bytes <= held:
            _log.warning(
                "most_memory: %.0f MB are held before any training, so only the cheapest row is trained", held / 1e6
            )


def _minute_of_day() -> int:
    # Its owner may give the machine another time zone (timedatectl) while we run; C's library looks once otherwise.
    time.tzset()
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min
