"""Numbers for connections that rise from one to the next, whatever happens in between.

An old connection's will may be published after a new one has begun: the smaller number tells.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from distreal_edge.durable import write_durably
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["SessionNumbers"]

_log = logging.getLogger(__name__)


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


class SessionNumbers:
    """Call it for the next number: the Unix time in milliseconds, or one more than the last when that is not larger.

    The last one is kept in a file, because a board without a battery may wake up in the past. A file that is lost or
    damaged leaves the time, and a disk that takes nothing costs a warning.
    """

    def __init__(self, path: Path, clock_ms: Callable[[], int] = _milliseconds) -> None:
        """Read the last number."""
        self._path = path
        self._clock_ms = clock_ms
        try:
            kept = path.read_bytes()
            self._last = int(kept) if kept.isdigit() and len(kept) < 16 else 0
        except OSError:
            self._last = 0

    def __call__(self) -> int:
        """Return the next number, which is on the disk by then."""
        self._last = max(self._last + 1, self._clock_ms())
        try:
            write_durably(self._path, str(self._last).encode())
        except StateError as error:
            _log.warning("%s", error)
        return self._last
