"""What can disturb a measurement: who computes, how hot it is, who else is at work."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from distreal_edge.machine import Roots, read_firmware_throttled, read_temperature_c, read_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Machine", "State", "cool_down", "describe_machine", "read_state"]

_HOT_C: Final = 75.0
"""Boards slow down at 80 to 85 degrees."""
_PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.5
_BUSY_LOAD: Final = 0.5
"""A load average over this means that somebody else computes, while we have not begun."""
_GOVERNOR: Final = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, slots=True)
class Machine:
    """What stays the same: `governor` is Linux's frequency policy, None where there is none to see."""

    processor: str
    cores: int
    governor: str | None


@dataclass(frozen=True, slots=True)
class State:
    """What changes: the hottest sensor, whether the firmware holds the frequency down, and the load of a minute.

    `temperature_c` is None where nothing measures it.
    """

    temperature_c: float | None
    throttled: bool
    load: float

    @property
    def hot(self) -> bool:
        """Whether a measurement now would be of the cooling rather than of the code."""
        return self.throttled or (self.temperature_c is not None and self.temperature_c >= _HOT_C)

    @property
    def busy(self) -> bool:
        """Whether others were computing in the last minute."""
        return self.load > _BUSY_LOAD


def describe_machine() -> Machine:
    """Return what is known about this machine; nothing fails where Linux says less."""
    return Machine(_processor(), os.cpu_count() or 1, read_text(_GOVERNOR) or None)


def read_state() -> State:
    """Look at this machine's temperature, throttling and load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return State(read_temperature_c(Roots()), bool(read_firmware_throttled(Roots())), load)


def cool_down(
    pause_s: float,
    *,
    read: Callable[[], State] = read_state,
    sleep: Callable[[float], object] = time.sleep,
    patience_s: float = _PATIENCE_S,
) -> State:
    """Pause, and then wait while the machine is hot or throttled, at most `patience_s`; return its state at the end."""
    sleep(pause_s)
    waited_s = 0.0
    while (state := read()).hot and waited_s < patience_s:
        sleep(_LOOK_S)
        waited_s += _LOOK_S
    return state


def _processor() -> str:
    # ARM's /proc/cpuinfo names no model; the device tree names the board.
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return read_text("/proc/device-tree/model") or platform.processor() or platform.machine()
