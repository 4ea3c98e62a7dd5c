"""Judge whether this machine's clock is right: rounds are given in wall-clock time."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import Final

from distreal_edge.doctor.finding import Finding

__all__ = ["ClockReading", "judge_clock", "read_clock"]

_OLDEST_YEAR: Final = 2025
_NEWEST_YEAR: Final = 2100
_UNKNOWN_US: Final = 16_000_000
"""The error that Linux gives a clock which nobody sets; `timedatectl` goes by the same."""
_REMEDY: Final = (
    "sudo apt-get install systemd-timesyncd && sudo timedatectl set-ntp true; "
    "once a time server was reached, timedatectl says 'System clock synchronized: yes'"
)


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The time in Unix seconds, and by how much Linux thinks it may be wrong: infinity when nobody sets the clock.

    None where Linux does not say.
    """

    time_s: float
    error_s: float | None


class _Timex(ctypes.Structure):
    # The beginning of the kernel's struct timex (adjtimex(2)), and more than enough room for the rest of it.
    _fields_ = (
        ("modes", ctypes.c_int),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_char * 512),
    )


def read_clock() -> ClockReading:
    """Ask Linux; nothing is set."""
    timex = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) < 0:
        return ClockReading(time.time(), None)
    error_us = int(timex.maxerror)
    return ClockReading(time.time(), float("inf") if error_us >= _UNKNOWN_US else error_us / 1e6)


def judge_clock(reading: ClockReading) -> Finding:
    """Say whether somebody sets the clock, and whether it shows a year of this program's life."""
    now = time.gmtime(reading.time_s)
    shown = time.strftime("%Y-%m-%d %H:%M UTC", now)
    if not _OLDEST_YEAR <= now.tm_year <= _NEWEST_YEAR:
        return Finding("clock", f"shows {shown}", _REMEDY)
    if reading.error_s is None:
        return Finding("clock", f"shows {shown}; whether a time server sets it cannot be seen here")
    if reading.error_s == float("inf"):
        return Finding("clock", f"shows {shown}, and no time server sets it", _REMEDY)
    return Finding("clock", f"set by a time server, right to within {reading.error_s:.2g} s")
