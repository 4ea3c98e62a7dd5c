"""Write down what a board has free as a trace, with as few lines as tell the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from distreal_edge.device.board import Availability

__all__ = ["HEADER", "Recorder"]

HEADER: Final = "seconds,cores,memory,temperature\n"

# What a line may be wrong by until the next one.
_CORES: Final = 0.05
_MEMORY_SHARE: Final = 0.02
_TEMPERATURE_C: Final = 1.0
_LONGEST_S: Final = 5.0
"""There is a line at least so often, so that a recording shows how long it went on."""


@dataclass(frozen=True, slots=True)
class _Entry:
    # As it is written: milliseconds, thousandths of a core, bytes, tenths of a degree.
    second: float
    cores: float
    memory_bytes: int | None
    temperature_c: float | None

    def line(self) -> str:
        memory = "" if self.memory_bytes is None else str(self.memory_bytes)
        temperature = "" if self.temperature_c is None else f"{self.temperature_c:.1f}"
        return f"{self.second:.3f},{self.cores:.3f},{memory},{temperature}\n"


class Recorder:
    """Decide, sample by sample, which lines a trace needs."""

    def __init__(self) -> None:
        """Begin before the first sample."""
        self._last: _Entry | None = None

    def line(self, second: float, sample: Availability) -> str | None:
        """Return the line for what was free at this second, or None when the last one still tells it.

        Seconds rise from call to call; the first is written as 0.
        """
        last = self._last
        entry = _Entry(
            0.0 if last is None else round(second, 3),
            round(sample.cores, 3),
            None if sample.memory_bytes is None else round(sample.memory_bytes),
            None if sample.temperature_c is None else round(sample.temperature_c, 1),
        )
        if last is not None and (entry.second <= last.second or not _is_news(last, entry)):
            return None
        self._last = entry
        return entry.line()


def _is_news(last: _Entry, now: _Entry) -> bool:
    return (
        now.second - last.second >= _LONGEST_S
        or abs(now.cores - last.cores) >= _CORES
        or (now.cores == 0.0) != (last.cores == 0.0)
        or _differ(last.memory_bytes, now.memory_bytes, _MEMORY_SHARE * (last.memory_bytes or 0))
        or _differ(last.temperature_c, now.temperature_c, _TEMPERATURE_C)
    )


def _differ(last: float | None, now: float | None, by: float) -> bool:
    if last is None or now is None:
        return last is not now
    return abs(now - last) > by
