"""Judge how much of this machine training may have, by its control groups and by its owner."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.doctor.finding import Finding
from distreal_edge.machine import Roots, find_groups, read_cpuset, read_quotas, read_text
from distreal_edge.machine.files import read_whole, whole
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from distreal_edge.device import Availability, OwnerLimits
    from distreal_edge.machine import MemoryGroup

__all__ = ["LimitsReading", "judge_limits", "read_limits"]

_LEAST_CORES: Final = 0.25
_LEAST_BYTES: Final = 200e6
"""The program takes about 100 MB before it has images or a network."""
_MEMORY_LIMITS: Final = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}


@dataclass(frozen=True, slots=True)
class LimitsReading:
    """What control groups and affinity leave to a process, of `cpus` in the machine.

    `process_id` is the running program's; None: what holds for whoever looks. No quota or limit is None.
    """

    cpus: int
    allowed: int
    quota_cores: float | None = None
    memory_limit_bytes: int | None = None
    process_id: int | None = None


def read_limits(roots: Roots, process_id: int | None = None) -> LimitsReading:
    """Read the limits of a process, by default of this one."""
    groups = find_groups(roots, read_text(roots.proc / str(process_id or "self") / "cgroup") or "")
    cpus = os.cpu_count() or 1
    try:
        allowed = os.sched_getaffinity(process_id or 0)
    except OSError:  # it has just ended
        allowed = os.sched_getaffinity(0)
    cpuset = read_cpuset(groups.cpusets)
    return LimitsReading(
        cpus=cpus,
        allowed=len(allowed if cpuset is None else allowed & cpuset or allowed),
        quota_cores=min((quota.cores for quota in read_quotas(groups.cpu)), default=None),
        memory_limit_bytes=_memory_limit(roots, groups.memory),
        process_id=process_id,
    )


def judge_limits(
    reading: LimitsReading, available: Availability, limits: OwnerLimits | None = None
) -> tuple[Finding, ...]:
    """Say what there is for training, by its limits and right now (`available`), and whether that can be enough."""
    findings = [_processors(reading, available, limits), _memory(reading, available, limits)]
    if limits is not None and limits.highest_temperature_c is not None and available.temperature_c is None:
        findings.append(
            Finding(
                "temperature limit",
                "highest_temperature_c is set, and no sensor here tells a temperature",
                "remove it: it pauses nothing; in a virtual machine or a container watch the heat outside of it",
            )
        )
    return tuple(findings)


def _processors(reading: LimitsReading, available: Availability, limits: OwnerLimits | None) -> Finding:
    most = [float(reading.allowed)]
    words = [f"{reading.allowed} of {reading.cpus} CPUs"]
    if reading.quota_cores is not None:
        most.append(reading.quota_cores)
        words.append(f"a quota of {count_of(f'{reading.quota_cores:.3g}', 'core')}")
    if limits is not None and limits.most_cores is not None:
        most.append(limits.most_cores)
        words.append(f"most_cores {limits.most_cores:g}")
    whose = "" if reading.process_id is None else f"process {reading.process_id} may use "
    paused = f"; nothing is trained now: {available.paused}" if available.paused else ""
    beside = "" if reading.process_id is None else " beside it"
    found = f"{whose}{', '.join(words)}; {available.cores:.2f} cores are free{beside} now{paused}"
    if min(most) >= _LEAST_CORES:
        return Finding("processors", found)
    return Finding(
        "processors",
        found,
        "allow more: CPUQuota= and AllowedCPUs= of the service (sudo systemctl edit distreal-edge-device), --cpus of a "
        "container, most_cores under [resources]",
    )


def _memory(reading: LimitsReading, available: Availability, limits: OwnerLimits | None) -> Finding:
    limit = (
        "" if reading.memory_limit_bytes is None else f", under a limit of {reading.memory_limit_bytes / 1e6:.0f} MB"
    )
    if limits is not None and limits.most_memory_bytes is not None:
        limit += f", most_memory {limits.most_memory_bytes / 1e6:.0f} MB"
    if available.memory_bytes is None:
        return Finding("memory", f"Linux does not say how much can be had{limit}")
    found = f"{available.memory_bytes / 1e6:.0f} MB can be had now{limit}"
    least = min(available.memory_bytes, math.inf if reading.memory_limit_bytes is None else reading.memory_limit_bytes)
    if least >= _LEAST_BYTES:
        return Finding("memory", found)
    return Finding(
        "memory",
        found,
        "end what else runs, or allow more: MemoryMax= of the service, --memory of a container, most_memory under "
        "[resources]",
    )


def _memory_limit(roots: Roots, groups: Iterable[MemoryGroup]) -> int | None:
    limits = [
        limit
        for group in groups
        for name in _MEMORY_LIMITS[group.version]
        if (limit := read_whole(group.folder / name)) is not None and limit >= 0
    ]
    # Version 1 says a huge number, and some engines say all of the machine's memory, when they mean no limit.
    total = _total_bytes(roots)
    return min((limit for limit in limits if total is None or limit < total), default=None)


def _total_bytes(roots: Roots) -> int | None:
    for line in (read_text(roots.proc / "meminfo") or "").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemTotal":
            kibibytes = whole(amount.removesuffix("kB"))
            return None if kibibytes is None else kibibytes * 1024
    return None
