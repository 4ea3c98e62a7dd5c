"""Whether a long measurement was disturbed: heat, throttling, and the processor time that others took meanwhile.

Our own work raises the load average, so while we measure others are judged by their processor time instead.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.machine import Roots, own_affinity, read_busy_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distreal_edge.bench.machine import State

__all__ = ["Usage", "heat_before", "heat_meanwhile", "others_before", "others_cores", "others_meanwhile", "read_usage"]

MOST_OTHERS_CORES: Final = 0.25
"""What a quiet board's own services take at times; more is somebody's work."""
SLOWS_C: Final = 80.0
"""Where boards begin to slow down. Between this and where a measurement may begin, a step may warm the board."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The processor seconds used so far, at one moment.

    `busy_s` are those of everybody on the CPUs that this process may run on, `own_s` those of this process.
    """

    time_s: float
    busy_s: float
    own_s: float


def read_usage() -> Usage:
    """Read this machine's counters, which are exact to about a hundredth of a second."""
    busy_s = read_busy_seconds(Roots()) or {}
    return Usage(time.monotonic(), sum(busy_s.get(cpu, 0.0) for cpu in own_affinity()), time.process_time())


def others_cores(before: Usage, after: Usage) -> float:
    """Return how many cores other processes used on average between two readings, at least 0."""
    elapsed_s = after.time_s - before.time_s
    if elapsed_s <= 0.0:
        return 0.0
    return max(0.0, (after.busy_s - before.busy_s) - (after.own_s - before.own_s)) / elapsed_s


def others_before(cores: float, load: float) -> str | None:
    """Say that others compute while we do nothing, or None. `cores` is what they use, `load` the load average."""
    if cores <= MOST_OTHERS_CORES:
        return None
    return f"others use {cores:.1f} cores (load average {load:.1f})"


def others_meanwhile(cores: Sequence[float], *, finished: bool) -> str | None:
    """Say that others computed too much while we measured, or None; `cores` is what they used in each stretch of it.

    One stretch may be busy, because medians over several do not see it; two are too many. When all is `finished` the
    mean must be small as well, so that of few stretches none is busy.
    """
    busy = [stretch for stretch in cores if stretch > MOST_OTHERS_CORES]
    mean = statistics.fmean(cores) if cores else 0.0
    if len(busy) > 1 or (finished and mean > MOST_OTHERS_CORES):
        return f"others used {max(cores):.1f} cores at times, {mean:.1f} on average"
    return None


def heat_before(state: State) -> str | None:
    """Say that the machine is too hot to begin, or None."""
    return f"this machine is {_heat(state)}" if state.hot else None


def heat_meanwhile(state: State) -> str | None:
    """Say that the machine slowed down while we measured, or None."""
    slow = state.throttled or (state.temperature_c is not None and state.temperature_c >= SLOWS_C)
    return f"this machine became {_heat(state)}" if slow else None


def _heat(state: State) -> str:
    words = []
    if state.throttled:
        words.append("throttled (by heat or a weak power supply)")
    if state.temperature_c is not None:
        words.append(f"{state.temperature_c:.0f} degrees hot")
    return " and ".join(words) or "hot"
