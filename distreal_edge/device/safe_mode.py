"""Safe mode: a device that has crashed again and again reports, and does not train.

A run that began and never said that it ended has crashed: a fault of the program, its watchdog, too little memory, or a
power supply that does not bear the load.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from distreal_edge.durable import quarantine, remove_durably, write_durably
from distreal_edge.errors import DistrealError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["History", "SafeMode", "begun", "crashes_counted"]

_log = logging.getLogger(__name__)
MOST_CRASHES = 3
WITHIN_S = 600.0
REST_S = 1800.0


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device remembers of its runs: whether one is going on, and when crashes were found (Unix seconds)."""

    running: bool = False
    crashes_s: tuple[float, ...] = ()


def begun(history: History, now_s: float) -> History:
    """Return the history after a start: the run before has crashed if it still seems to go on; old crashes are past.

    A board without a clock of its own may start before its last crash: seconds count in both directions.
    """
    crashes_s = (*history.crashes_s, now_s) if history.running else history.crashes_s
    return History(running=True, crashes_s=tuple(each for each in crashes_s if abs(now_s - each) <= WITHIN_S))


class SafeMode:
    """The history of one state folder, which the caller holds, and whether this run is in safe mode.

    It is left after a rest without a crash, or when the owner removes the file.
    """

    def __init__(self, path: Path) -> None:
        """Begin a run."""
        self._path = path
        self._lock = threading.Lock()
        self._history = begun(_read(path), time.time())
        self._write()
        self._crashes = len(self._history.crashes_s)
        self.on = self._crashes >= MOST_CRASHES
        self._until_s = time.monotonic() + REST_S
        self._ended = False

    @property
    def explanation(self) -> str:
        """What safe mode is, and what ends it, in a line for the owner."""
        left_min = math.ceil(max(0.0, self._until_s - time.monotonic()) / 60.0)
        return (
            f"degraded: crashed {self._crashes} times within {WITHIN_S / 60:.0f} min; "
            f"trains again in {left_min} min, or once {self._path} is removed"
        )

    def over(self) -> bool:
        """Return whether safe mode has ended just now, and forget the crashes then."""
        with self._lock:
            if self._ended or not self.on or (time.monotonic() < self._until_s and self._path.exists()):
                return False
            self.on = False
            self._history = History(running=True)
            self._write()
            return True

    def end(self) -> None:
        """Note that this run ends in an orderly way. May be called from any thread."""
        with self._lock:
            if self._ended:
                return
            if self._history.crashes_s and self._path.exists():  # else the owner wants them forgotten
                self._history = History(crashes_s=self._history.crashes_s)
                self._write()
            else:
                with _told():
                    remove_durably(self._path)
            self._ended = True

    def _write(self) -> None:
        with _told():
            write_durably(self._path, msgspec.json.encode(self._history))


@contextmanager
def _told() -> Iterator[None]:
    # A full disk must not keep a device from sending what it has: that is what makes room.
    try:
        yield
    except StateError as error:
        _log.warning("crashes cannot be counted: %s", error)


@contextmanager
def crashes_counted(path: Path) -> Iterator[SafeMode]:
    """Begin a run, and end it in an orderly way unless what comes out is a fault of this program."""
    mode = SafeMode(path)
    try:
        yield mode
    except (DistrealError, KeyboardInterrupt):
        mode.end()
        raise
    mode.end()


def _read(path: Path) -> History:
    try:
        return msgspec.json.decode(path.read_bytes(), type=History)
    except FileNotFoundError:
        return History()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        moved = quarantine(path, path.parent)
        where = moved.relative_to(path.parent)
        _log.warning("%s: cannot be read (%s); moved to %s; earlier crashes are forgotten", path, error, where)
        return History()
