"""What the owner allows, and when: decided from the time and the readings that are handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OwnerLimits", "QuietHours", "is_too_hot", "pause_reason"]

_COOLER_C: Final = 5.0
"""How far below the highest temperature training resumes. A board cools by a few degrees within seconds."""


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A part of the day in which nothing is trained, in minutes since midnight; over midnight when it ends first."""

    begin: int
    end: int

    def cover(self, minute: int) -> bool:
        """Return whether a minute of the day is one of them. The last one is not."""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.begin, self.end))


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """What the owner lends. None is no limit.

    `most_memory_bytes` is for this whole process. Nothing is trained in `quiet_hours`, above `highest_temperature_c`,
    while `pause_file` exists, and on battery unless `train_on_battery`.
    """

    most_cores: float | None = None
    most_memory_bytes: float | None = None
    quiet_hours: tuple[QuietHours, ...] = ()
    highest_temperature_c: float | None = None
    pause_file: Path | None = None
    train_on_battery: bool = False


def is_too_hot(limits: OwnerLimits, temperature_c: float | None, *, was: bool) -> bool:
    """Return whether it is too hot to train; `was` is the last answer, which holds until it is some degrees cooler.

    A sensor that does not answer says nothing new.
    """
    highest_c = limits.highest_temperature_c
    if highest_c is None:
        return False
    if temperature_c is None:
        return was
    return temperature_c > (highest_c - _COOLER_C if was else highest_c)


def pause_reason(
    limits: OwnerLimits, *, minute: int, too_hot: bool, on_battery: bool, pause_file_exists: bool | None
) -> str | None:
    """Say why nothing may be trained now, or None. `minute` is that of the day, by the owner's clock.

    `pause_file_exists` is None when it cannot be looked for: the owner may have put it there, so it counts as if.
    """
    if limits.pause_file is not None and pause_file_exists is not False:
        exists = "exists" if pause_file_exists else "cannot be looked for, its folder is closed to us"
        return f"{limits.pause_file} {exists}"
    for hours in limits.quiet_hours:
        if hours.cover(minute):
            return f"quiet hours {hours}"
    if too_hot:
        return f"hotter than {limits.highest_temperature_c:g} degrees"
    if on_battery and not limits.train_on_battery:
        return 'on battery; on_battery = "train" below [resources] would allow it'
    return None
