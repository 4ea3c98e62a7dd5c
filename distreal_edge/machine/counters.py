"""Everything that changes from moment to moment, read at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distreal_edge.machine.groups import Groups, find_groups, read_membership
from distreal_edge.machine.limits import Quota, read_cpuset, read_group_memory, read_quotas
from distreal_edge.machine.memory import read_available_bytes, read_resident_bytes
from distreal_edge.machine.pressure import read_own_waits, read_waited_seconds
from distreal_edge.machine.processors import own_affinity, read_busy_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from distreal_edge.machine.files import Roots

__all__ = ["CounterReader", "Counters"]


@dataclass(frozen=True, slots=True)
class Counters:
    """What Linux has counted by `time_s`; seconds are CPU seconds unless they are waited ones.

    `allowed` are the CPUs that this process may run on, `busy_s` by CPU what everybody used there, `own_s` what this
    process used. `waited_s` is for how long somebody waited for a CPU, `own_waits_s` how long each of our threads did;
    None where Linux does not say. `memory_bytes` can still be had, `resident_bytes` are held by this process.
    """

    time_s: float
    allowed: frozenset[int]
    busy_s: Mapping[int, float]
    own_s: float
    quotas: tuple[Quota, ...] = ()
    waited_s: float | None = None
    own_waits_s: Mapping[int, float] | None = None
    memory_bytes: int | None = None
    resident_bytes: int | None = None


class CounterReader:
    """Read counters. It remembers which groups this process is in, and looks for them anew when Linux says others."""

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

    def read(self) -> Counters:
        """Return the counters of this moment."""
        membership = read_membership(self._roots)
        if membership != self._membership:
            self._membership, self._groups = membership, find_groups(self._roots, membership)
        groups = self._groups
        allowed = frozenset(self._affinity())
        cpuset = read_cpuset(groups.cpusets)
        waited_s = read_waited_seconds(self._roots)
        memory_bytes = read_available_bytes(self._roots)
        return Counters(
            # What is compared with the time is read next to it: others may take the CPU from us at any moment.
            own_s=self._own_s(),
            time_s=self._clock(),
            busy_s=read_busy_seconds(self._roots) or {},
            quotas=read_quotas(groups.cpu),
            allowed=allowed if cpuset is None else allowed & cpuset or allowed,
            waited_s=waited_s,
            own_waits_s=None if waited_s is None else read_own_waits(self._roots),
            memory_bytes=None if memory_bytes is None else read_group_memory(groups.memory, memory_bytes),
            resident_bytes=read_resident_bytes(self._roots),
        )
