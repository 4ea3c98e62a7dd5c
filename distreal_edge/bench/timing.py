"""Repeated measurements and what is said about them."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Timing", "repeat", "timed"]

_FEWEST: Final = 3
_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run: the median and the minimum of several, and how far the middle half of them spreads.

    `spread` is the distance of the quartiles over the median: 0.02 means that half of the runs lie within two percent.
    """

    median_s: float
    minimum_s: float
    spread: float
    repeats: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Timing:
        """Summarise the seconds of at least two runs."""
        lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
        return Timing(median, min(seconds), (upper - lower) / median, len(seconds))


def repeat(measure: Callable[[int], Sequence[float]], seconds: float) -> Timing:
    """Time as many runs as fill `seconds`, 3 at least; `measure(count)` returns the seconds of so many runs.

    What `measure` does on its first run is its own business: it should leave a warm-up out.
    """
    first = measure(_FEWEST)
    wanted = int(seconds / max(statistics.median(first), 1e-9))
    if wanted <= _FEWEST:
        return Timing.of(first)
    return Timing.of(measure(min(wanted, _MOST)))


def timed(run: Callable[[], object], count: int) -> list[float]:
    """Return the seconds that each of `count` runs takes."""
    seconds: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds
