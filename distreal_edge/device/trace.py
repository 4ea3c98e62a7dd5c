"""A trace of availability: what a board had free, second by second."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["MOST_LINES", "Trace"]

MOST_LINES: Final = 1_000_000
_MOST_CORES: Final = 4096.0
_MOST_BYTES: Final = 2.0**50
_COLDEST_C: Final = -100.0
_HOTTEST_C: Final = 300.0


@dataclass(frozen=True, slots=True)
class Trace:
    """A step function: from `seconds[i]` on, `cores[i]` cores are free, until the next entry; the last one holds.

    `memory_bytes` are free then, and the hottest sensor shows `temperature_c`, as far as the trace tells: an entry is
    None, or all of them are missing, where nobody knows.
    """

    seconds: tuple[float, ...]
    cores: tuple[float, ...]
    memory_bytes: tuple[float | None, ...] = ()
    temperature_c: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        """Check that time starts at zero and rises, and that everything else is within reason."""
        entries = len(self.seconds)
        if not entries or len(self.cores) != entries:
            raise ConfigError("a trace needs at least one line, and each needs seconds and cores")
        if len(self.memory_bytes) not in {0, entries} or len(self.temperature_c) not in {0, entries}:
            raise ConfigError("a trace tells memory and temperature in every line, or in none")
        before: float | None = None
        for second, cores in zip(self.seconds, self.cores, strict=True):
            _check_entry(before, second, cores)
            before = second
        for memory_bytes in self.memory_bytes:
            _check_memory(memory_bytes)
        for temperature_c in self.temperature_c:
            _check_temperature(temperature_c)

    @staticmethod
    def load(path: str | Path) -> Trace:
        """Read a CSV file with the header `seconds,cores`, and `memory,temperature` if it tells them.

        Memory is in bytes and temperature in degrees Celsius; both may be empty. Further columns are ignored. Raises
        `ConfigError` with the file, the line and what is wrong there.
        """
        seconds: list[float] = []
        cores: list[float] = []
        memory_bytes: list[float | None] = []
        temperature_c: list[float | None] = []
        line = 1
        if Path(path).is_char_device():  # may have no end
            raise ConfigError(f"{path}: is a device, not a file")
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
                    memory_bytes.append(_check_memory(_number_if_any(row.get("memory"))))
                    temperature_c.append(_check_temperature(_number_if_any(row.get("temperature"))))
            return Trace(tuple(seconds), tuple(cores), _known(memory_bytes), _known(temperature_c))
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the trace: {error.strerror}") from None
        except (UnicodeError, csv.Error) as error:
            raise ConfigError(f"{path}:{line}: the trace is damaged here or in the next lines: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}:{line}: {error}") from None

    def at(self, second: float) -> float:
        """Return the cores that are free at this second."""
        return self.cores[self._position(second)]

    def memory_bytes_at(self, second: float) -> float | None:
        """Return the bytes that are free at this second, None where the trace does not tell."""
        return self.memory_bytes[self._position(second)] if self.memory_bytes else None

    def temperature_c_at(self, second: float) -> float | None:
        """Return the temperature at this second, None where the trace does not tell."""
        return self.temperature_c[self._position(second)] if self.temperature_c else None

    def finish(self, start: float, core_seconds: float, most_cores: float = math.inf) -> float:
        """Return when work of so many core-seconds ends if it starts at `start` and takes all that is free.

        It can use at most `most_cores`: its threads. Infinity when the trace ends without a free core before then.
        """
        position = self._position(start)
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

    def _position(self, second: float) -> int:
        return max(0, bisect_right(self.seconds, second) - 1)


def _check_header(names: Iterable[str]) -> None:
    if not {"seconds", "cores"} <= set(names):
        raise ConfigError("a trace's first line must name the columns seconds and cores: seconds,cores")


def _check_room(lines: int) -> None:
    if lines == MOST_LINES:
        raise ConfigError(f"a trace has at most {MOST_LINES} lines")


def _number(text: str | None) -> float:
    if text is None:
        raise ConfigError("seconds and cores must be numbers, and here something is missing")
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"seconds and cores must be numbers, got {text!r}") from None


def _number_if_any(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ConfigError(f"memory and temperature must be numbers or empty, got {text!r}") from None


def _known(column: Sequence[float | None]) -> tuple[float | None, ...]:
    return tuple(column) if any(value is not None for value in column) else ()


def _check_entry(before: float | None, second: float, cores: float) -> None:
    if before is None and second != 0.0:
        raise ConfigError(f"a trace starts at 0 seconds, not at {second}")
    if before is not None and not (math.isfinite(second) and second > before):
        raise ConfigError(f"a trace's seconds must rise, but {second} follows {before}")
    if not 0.0 <= cores <= _MOST_CORES:
        raise ConfigError(f"a trace's cores must be from 0 to {_MOST_CORES:.0f}, got {cores}")


def _check_memory(memory_bytes: float | None) -> float | None:
    if memory_bytes is not None and not 0.0 <= memory_bytes <= _MOST_BYTES:
        raise ConfigError(f"a trace's memory is in bytes, from 0 to 2^50, got {memory_bytes}")
    return memory_bytes


def _check_temperature(temperature_c: float | None) -> float | None:
    if temperature_c is not None and not _COLDEST_C <= temperature_c <= _HOTTEST_C:
        raise ConfigError(
            f"a trace's temperature is in degrees Celsius, from {_COLDEST_C:.0f} to {_HOTTEST_C:.0f}, "
            f"got {temperature_c}"
        )
    return temperature_c
