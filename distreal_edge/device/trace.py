"""A trace of availability: how many cores a board had free, second by second."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from distreal_edge.errors import ConfigError

__all__ = ["Trace"]

_MOST_LINES = 1_000_000


@dataclass(frozen=True, slots=True)
class Trace:
    """A step function: from `seconds[i]` on, `cores[i]` cores are free, until the next entry; the last one holds."""

    seconds: tuple[float, ...]
    cores: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that time starts at zero and rises, and that cores are no negative numbers."""
        if not self.seconds or len(self.seconds) != len(self.cores):
            raise ConfigError("a trace needs at least one line of seconds and cores")
        if self.seconds[0] != 0.0:
            raise ConfigError(f"a trace starts at 0 seconds, not at {self.seconds[0]}")
        for before, after in zip(self.seconds, self.seconds[1:], strict=False):
            if not after > before:
                raise ConfigError(f"a trace's seconds must rise, but {after} follows {before}")
        for cores in self.cores:
            if not (math.isfinite(cores) and cores >= 0.0):
                raise ConfigError(f"a trace's cores must be 0 or more, got {cores}")

    @staticmethod
    def load(path: str | Path) -> Trace:
        """Read a CSV file with the header `seconds,cores` (further columns are ignored)."""
        seconds: list[float] = []
        cores: list[float] = []
        try:
            with Path(path).open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if not {"seconds", "cores"} <= set(reader.fieldnames or ()):
                    raise ConfigError(f"{path}:1: a trace's header must name seconds and cores")
                for row in reader:
                    if len(seconds) == _MOST_LINES:
                        raise ConfigError(f"{path}: a trace has at most {_MOST_LINES} lines")
                    try:
                        seconds.append(float(row["seconds"]))
                        cores.append(float(row["cores"]))
                    except (TypeError, ValueError):
                        raise ConfigError(f"{path}:{reader.line_num}: seconds and cores must be numbers") from None
            return Trace(tuple(seconds), tuple(cores))
        except (OSError, UnicodeError, csv.Error) as error:
            raise ConfigError(f"{path}: cannot read the trace: {error}") from None
        except ConfigError as error:
            raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None

    def at(self, second: float) -> float:
        """Return the cores that are free at this second."""
        return self.cores[max(0, bisect_right(self.seconds, second) - 1)]

    def finish(self, start: float, core_seconds: float) -> float:
        """Return when work of so many core-seconds ends if it starts at `start` and takes all that is free.

        Infinity when the cores that stay free at the end of the trace are none.
        """
        position = max(0, bisect_right(self.seconds, start) - 1)
        now, left = start, core_seconds
        while True:
            end = self.seconds[position + 1] if position + 1 < len(self.seconds) else math.inf
            cores = self.cores[position]
            if cores > 0.0 and now + left / cores <= end:
                return now + left / cores
            if math.isinf(end):
                return math.inf
            left -= cores * (end - now)
            now, position = end, position + 1
