"""Which CPUs there are, which of them are ours, and how long each of them has worked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from distreal_edge.machine.files import read_text, whole

if TYPE_CHECKING:
    from distreal_edge.machine.files import Roots

__all__ = ["own_affinity", "parse_cpus", "read_busy_seconds"]

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_MOST_CPUS: Final = 8192
"""The most that Linux can be built for."""
# The columns of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice. A guest's time is
# counted once as the guest's, and once more in user or nice.
_BUSY: Final = (0, 1, 2, 5, 6, 7)


def read_busy_seconds(roots: Roots) -> dict[int, float] | None:
    """Return the seconds that each CPU has been busy so far, by its number; None when Linux does not say.

    Time that a hypervisor took away counts as busy. Linux counts in hundredths of a second.

    This is not psutil's `cpu_times(percpu=True)`, because that drops the CPUs' numbers: with one CPU switched off, the
    third of its list is not CPU 2, and others would be looked for on the wrong ones. Where it reads is set for the
    whole process, too.
    """
    # The CPUs come first; behind them is a line of thousands of interrupt counts.
    head = (read_text(f"{roots.proc}/stat") or "").partition("\nintr")[0]
    busy: dict[int, float] = {}
    for line in head.splitlines():
        if not line.startswith("cpu"):
            break
        name, *fields = line.split()
        number = whole(name[3:])
        ticks = [whole(field) for field in fields[:8]]
        if number is None or number < 0 or len(ticks) < 4:
            continue
        busy[number] = sum(ticks[column] or 0 for column in _BUSY if column < len(ticks)) / _TICKS_PER_S
    return busy or None


def own_affinity() -> frozenset[int]:
    """Return the CPUs that this process may run on, cpusets included.

    These are the main thread's. The calling thread may have confined itself to some of them, which must not look as if
    the others were gone.
    """
    return frozenset(os.sched_getaffinity(os.getpid()))


def parse_cpus(text: str) -> frozenset[int] | None:
    """Return the CPUs of a list like `0-2,5`, or None when it is none. An empty list is empty."""
    cpus: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, dash, last = part.partition("-")
        begin = whole(first)
        end = whole(last) if dash else begin
        if begin is None or end is None or not 0 <= begin <= end < _MOST_CPUS:
            return None
        cpus.update(range(begin, end + 1))
    return frozenset(cpus)
