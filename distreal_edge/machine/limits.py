"""What control groups allow: CPU time, CPUs and memory.

The kernel's pages on cgroup-v1 and cgroup-v2 say what is in the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.machine.files import read_text, read_whole, whole
from distreal_edge.machine.processors import parse_cpus

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from distreal_edge.machine.groups import CpuGroup, MemoryGroup

__all__ = ["Quota", "read_cpuset", "read_group_memory", "read_quotas"]

_LIMITS: Final = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_USED: Final = {1: "memory.usage_in_bytes", 2: "memory.current"}
# Version 1 counts a group alone under the plain name, and with those below it under `total_`.
_INACTIVE: Final = {1: "total_inactive_file", 2: "inactive_file"}


@dataclass(frozen=True, slots=True)
class Quota:
    """A group's quota in cores, and the CPU seconds that all in the group used so far (None: not counted)."""

    group: str
    cores: float
    used_s: float | None


def read_quotas(groups: Iterable[CpuGroup]) -> tuple[Quota, ...]:
    """Return the quotas of those groups that have one."""
    quotas = []
    for group in groups:
        cores = _quota_cores(group)
        if cores is not None:
            quotas.append(Quota(str(group.folder), cores, _used_s(group)))
    return tuple(quotas)


def read_cpuset(folders: Iterable[Path]) -> frozenset[int] | None:
    """Return the CPUs that the innermost group which names any allows; None when none does."""
    for folder in folders:
        # Version 2's name first, then version 1's: a folder is of one version and has no file of the other's.
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            cpus = parse_cpus(read_text(folder / name) or "")
            if cpus:
                return cpus
    return None


def read_group_memory(groups: Iterable[MemoryGroup], at_most_bytes: int) -> int:
    """Return the bytes that can still be had under every group's limit, at most so many.

    File pages that were not used lately are counted as free: Linux takes them back before it refuses anything.
    """
    for group in groups:
        limits = [read_whole(group.folder / name) for name in _LIMITS[group.version]]
        used = read_whole(group.folder / _USED[group.version])
        known = [limit for limit in limits if limit is not None and limit >= 0]
        if not known or used is None:
            continue
        room = min(known) - used
        if room < at_most_bytes:  # the statistics are by far the dearest file
            room += _reclaimable_bytes(group)
        at_most_bytes = max(0, min(at_most_bytes, room))
    return at_most_bytes


def _quota_cores(group: CpuGroup) -> float | None:
    if group.version == 2:
        quota, _, period = (read_text(f"{group.folder}/cpu.max") or "").partition(" ")
    else:
        quota = read_text(f"{group.folder}/cpu.cfs_quota_us") or ""
        period = (read_text(f"{group.folder}/cpu.cfs_period_us") or "") if quota != "-1" else ""
    quota_us, period_us = whole(quota), whole(period)
    if quota_us is None or period_us is None or quota_us < 0 or period_us <= 0:
        return None
    return quota_us / period_us


def _used_s(group: CpuGroup) -> float | None:
    if group.usage is None:
        return None
    if group.version == 2:
        used_us = _statistic(group.usage / "cpu.stat", "usage_usec")
        return None if used_us is None else used_us / 1e6
    used_ns = read_whole(group.usage / "cpuacct.usage")
    return None if used_ns is None else used_ns / 1e9


def _reclaimable_bytes(group: MemoryGroup) -> int:
    return max(0, _statistic(group.folder / "memory.stat", _INACTIVE[group.version]) or 0)


def _statistic(path: Path, name: str) -> int | None:
    for line in (read_text(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return whole(value)
    return None
