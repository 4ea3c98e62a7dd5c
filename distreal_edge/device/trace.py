"""A trace of availability: how many cores a board had free, second by second."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Trace"]

_MOST_LINES = 1_000_000
_MOST_CORES = 4096.0


@dataclass(frozen=True, slots=True)
class Trace:
    """A step function: from `seconds[i]` on, `cores[i]` cores are free, until the next entry; the last one holds."""

    seconds: tuple[float, ...]
    cores: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that time starts at zero and rises, and that cores are numbers from 0 to 4096."""
        if not self.seconds or len(self.seconds) != len(self.cores):
            raise ConfigError("a trace needs at least one line, and each needs seconds and cores")
        before: float | None = None
        for second, cores in zip(self.seconds, self.cores, strict=True):
            _check_entry(before, second, cores)
            before = second

    @staticmethod
    def load(path: str | Path) -> Trace:
        """Read a CSV file with the header `seconds,cores` (further columns are ignored).

        Raises `ConfigError` with the file, the line and what is wrong there.
        """
        seconds: list[float] = []
        cores: list[float] = []
        line = 1
        try:
            with Path(path).open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                _check_header(reader.fieldnames or ())
                for row in reader:
                    line = reader.line_num
                    second, free = _number(row["seconds"]), _number(row["cores"])
                    _check_entry(seconds[-1] if seconds else None, second, free)
                    _check_room(len(seconds))
                    seconds.append(second)
                    cores.append(free)
            return Trace(tuple(seconds), tuple(cores))
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the trace: {error.strerror}") from None
        except (UnicodeError, csv.Error) as error:
            raise ConfigError(f"{path}:{line}: the trace is damaged here or in the next lines: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}:{line}: {error}") from None

    def at(self, second: float) -> float:
        """Return the cores that are free at this second."""
        return self.cores[max(0, bisect_right(self.seconds, second) - 1)]

    def finish(self, start: float, core_seconds: float, most_cores: float = math.inf) -> float:
        """Return when work of so many core-seconds ends if it starts at `start` and takes all that is free.

        It can use at most `most_cores`: its threads. Infinity when the trace ends without a free core before then.
        """
        position = max(0, bisect_right(self.seconds, start) - 1)
        now, left = start, core_seconds
        while left > 0.0:
            end = self.seconds[position + 1] if position + 1 < len(self.seconds) else math.inf
            cores = min(self.cores[position], most_cores)
            if cores > 0.0 and now + left / cores <= end:
                return now + left / cores
            if math.isinf(end):
                return math.inf
            left -= cores * (end - now)
            now, position = end, position + 1
        return now


def _check_header(names: Iterable[str]) -> None:
    if not {"seconds", "cores"} <= set(names):
        raise ConfigError("a trace's first line must name the columns seconds and cores: seconds,cores")


def _check_room(lines: int) -> None:
    if lines == _MOST_LINES:
        raise ConfigError(f"a trace has at most {_MOST_LINES} lines")


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise ConfigError(f"seconds and cores must be numbers, got {text!r}") from None


def _check_entry(before: float | None, second: float, cores: float) -> None:
    if before is None and second != 0.0:
        raise ConfigError(f"a trace starts at 0 seconds, not at {second}")
    if before is not None and not (math.isfinite(second) and second > before):
        raise ConfigError(f"a trace's seconds must rise, but {second} follows {before}")
    if not 0.0 <= cores <= _MOST_CORES:
        raise ConfigError(f"a trace's cores must be from 0 to {_MOST_CORES:.0f}, got {cores}")
