"""What this machine has to spare, from two readings of its counters. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distreal_edge.machine import Conditions, Counters

__all__ = ["most_cores", "quiet_cpus", "spare_bytes", "spare_cores"]


_ALIKE = 0.2
"""CPUs whose use by others differs by less, in cores, are alike: Linux counts in hundredths of a second."""


def most_cores(counters: Counters) -> float:
    """Return the cores that this process may use at most: its CPUs, or the smallest quota of its control groups."""
    return min([float(len(counters.allowed)), *(quota.cores for quota in counters.quotas)])


def spare_cores(before: Counters, after: Counters) -> float:
    """Return the cores that were not used by others between two readings; may be less than 0.

    - Of the CPUs that we may run on now, what others used there, and what they waited for there.
    - Of every group's quota, what others in that very group used.
    """
    elapsed_s = after.time_s - before.time_s
    if elapsed_s <= 0.0:
        return most_cores(after)
    own = max(0.0, after.own_s - before.own_s) / elapsed_s
    busy = _busy(before, after)
    here = sum(busy.get(cpu, 0.0) for cpu in after.allowed)
    # When CPUs were just taken away, a part of what we used was used there. Nobody says how much: it goes by how busy
    # they were. Otherwise all of it was used here.
    ran = sum(busy.get(cpu, 0.0) for cpu in before.allowed)
    stayed = sum(busy.get(cpu, 0.0) for cpu in before.allowed & after.allowed)
    own_here = own * stayed / ran if ran > 0.0 else own
    cpus = float(len(after.allowed))
    # Waiting that idle CPUs could have ended is not for want of a CPU: Linux also counts those who wait because
    # their own group's quota is used up.
    idle = max(0.0, cpus - here)
    spare = cpus - max(0.0, here - own_here) - max(0.0, _others_waited(before, after) / elapsed_s - idle)
    used_before = {quota.group: quota.used_s for quota in before.quotas}
    for quota in after.quotas:
        used_s = used_before.get(quota.group)
        others = 0.0
        if used_s is not None and quota.used_s is not None:
            others = max(0.0, (quota.used_s - used_s) / elapsed_s - own)
        spare = min(spare, quota.cores - others)
    return spare


def quiet_cpus(before: Counters, after: Counters, confined: frozenset[int]) -> tuple[int, ...]:
    """Return the CPUs that this process may run on, those first that others used least between two readings.

    Our own threads ran on `confined`, evenly as far as anybody knows. Of CPUs that are about as quiet those come first
    on which they run already, because moving costs.
    """
    elapsed_s = after.time_s - before.time_s
    if elapsed_s <= 0.0:
        return tuple(sorted(after.allowed, key=lambda cpu: (cpu not in confined, cpu)))
    ours = (confined & after.allowed) or after.allowed
    own = max(0.0, after.own_s - before.own_s) / elapsed_s / len(ours) if ours else 0.0
    busy = _busy(before, after)

    def others(cpu: int) -> float:
        return max(0.0, busy.get(cpu, 0.0) - (own if cpu in ours else 0.0))

    return tuple(sorted(after.allowed, key=lambda cpu: (round(others(cpu) / _ALIKE), cpu not in ours, cpu)))


def spare_bytes(conditions: Conditions, resident_at_start: int | None) -> float | None:
    """Return the bytes that training may hold: what can still be had, and what it holds already.

    `resident_at_start` is what this process held before it trained. Without what it took since, a row would cease to
    fit by being run.
    """
    if conditions.memory_bytes is None:
        return None
    taken = 0
    if conditions.resident_bytes is not None and resident_at_start is not None:
        taken = max(0, conditions.resident_bytes - resident_at_start)
    return float(conditions.memory_bytes + taken)


def _busy(before: Counters, after: Counters) -> dict[int, float]:
    """Return how busy everybody kept each CPU between two readings, in cores; CPUs of one reading are left out."""
    elapsed_s = after.time_s - before.time_s
    return {
        cpu: max(0.0, busy_s - before.busy_s[cpu]) / elapsed_s
        for cpu, busy_s in after.busy_s.items()
        if cpu in before.busy_s
    }


def _others_waited(before: Counters, after: Counters) -> float:
    """Return for how many seconds at least others waited for a CPU: the time somebody did, less what we did.

    Our threads are subtracted one by one although they may have waited at once, or beside others: it is a lower bound.
    Nothing is known when Linux does not tell, when our threads were not looked at, or when one of them ended and took
    its count along.
    """
    if before.waited_s is None or after.waited_s is None or before.own_waits_s is None or after.own_waits_s is None:
        return 0.0
    if not after.own_waits_s or not before.own_waits_s.keys() <= after.own_waits_s.keys():
        return 0.0
    ours = sum(waited_s - before.own_waits_s.get(thread, 0.0) for thread, waited_s in after.own_waits_s.items())
    return max(0.0, after.waited_s - before.waited_s - ours)
