"""Read this machine again and again: what changes from moment to moment, and what changes slowly."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.machine.groups import Groups, find_groups, read_membership
from distreal_edge.machine.heat import read_firmware_throttled, read_frequency_capped, read_temperature_c
from distreal_edge.machine.limits import Quota, read_cpuset, read_group_memory, read_quotas
from distreal_edge.machine.memory import read_available_bytes, read_resident_bytes
from distreal_edge.machine.power import read_on_battery
from distreal_edge.machine.pressure import read_own_waits, read_waited_seconds
from distreal_edge.machine.processors import own_affinity, read_busy_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from distreal_edge.machine.files import Roots

__all__ = ["Conditions", "Counters", "MachineReader"]

_LEAST_WAITED: Final = 0.02
"""The share of the time in which somebody must have waited for a CPU, for it to matter who."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What Linux has counted by `time_s`; seconds are CPU seconds unless they are waited ones.

    `allowed` are the CPUs that this process may run on, `busy_s` by CPU what everybody used there, `own_s` what this
    process used. `waited_s` is for how long somebody waited for a CPU (None where Linux does not say), `own_waits_s`
    for how long each thread of ours did (None when it was not looked at, because hardly anybody waited).
    """

    time_s: float
    allowed: frozenset[int]
    busy_s: Mapping[int, float]
    own_s: float
    quotas: tuple[Quota, ...] = ()
    waited_s: float | None = None
    own_waits_s: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What changes slowly. What Linux does not tell is None, or taken to be well.

    `memory_bytes` can still be had, `resident_bytes` are held by this process. `temperature_c` is that of the hottest
    sensor, `throttled` says that the frequency is held down, `on_battery` that a battery empties.
    """

    memory_bytes: int | None = None
    resident_bytes: int | None = None
    temperature_c: float | None = None
    throttled: bool = False
    on_battery: bool = False


class MachineReader:
    """Read counters several times a second, and conditions now and then, with as few files as that takes.

    It remembers which groups this process is in, and looks for them anew when Linux says others. Not for two threads at
    once.
    """

    def __init__(
        self,
        roots: Roots,
        *,
        affinity: Callable[[], Iterable[int]] = own_affinity,
        own_s: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is not found in files from functions."""
        self._roots = roots
        self._affinity = affinity
        self._own_s = own_s
        self._clock = clock
        self._membership = ""
        self._groups = Groups()
        self._cpuset: frozenset[int] | None = None
        self._waited: tuple[float, float] | None = None  # somebody, by then

    def counters(self) -> Counters:
        """Return the counters of this moment."""
        membership = read_membership(self._roots)
        if membership != self._membership:
            self._membership, self._groups = membership, find_groups(self._roots, membership)
            self._cpuset = read_cpuset(self._groups.cpusets)
        allowed = frozenset(self._affinity())
        # The affinity follows a cpuset at once. The file tells of those that it hides: it is read when it matters.
        if self._cpuset is not None and not allowed <= self._cpuset:
            self._cpuset = read_cpuset(self._groups.cpusets)
        quotas = read_quotas(self._groups.cpu)
        # What is compared with the time is read next to it: others may take the CPU from us at any moment.
        own_s, time_s = self._own_s(), self._clock()
        busy_s = read_busy_seconds(self._roots) or {}
        waited_s, own_waits_s = self._waits(time_s)
        return Counters(
            time_s=time_s,
            allowed=allowed if self._cpuset is None else allowed & self._cpuset or allowed,
            busy_s=busy_s,
            own_s=own_s,
            quotas=quotas,
            waited_s=waited_s,
            own_waits_s=own_waits_s,
        )

    def conditions(self) -> Conditions:
        """Return the conditions of this moment."""
        self._cpuset = read_cpuset(self._groups.cpusets)
        memory_bytes = read_available_bytes(self._roots)
        return Conditions(
            memory_bytes=None if memory_bytes is None else read_group_memory(self._groups.memory, memory_bytes),
            resident_bytes=read_resident_bytes(self._roots),
            temperature_c=read_temperature_c(self._roots),
            throttled=bool(read_firmware_throttled(self._roots) or read_frequency_capped(self._roots)),
            on_battery=bool(read_on_battery(self._roots)),
        )

    def _waits(self, time_s: float) -> tuple[float | None, dict[int, float] | None]:
        waited_s, before = read_waited_seconds(self._roots), self._waited
        self._waited = None if waited_s is None else (waited_s, time_s)
        # A file for each thread: not when it would not matter.
        if waited_s is None or before is None or waited_s - before[0] < _LEAST_WAITED * (time_s - before[1]):
            return waited_s, None
        return waited_s, read_own_waits(self._roots)
