"""One update on its way to the broker, a few chunks at a time, without ever waiting."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from distreal_edge.errors import TransportError
from distreal_edge.transport import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.transport import Delivery

__all__ = ["Upload"]

_WINDOW = 4
_PATIENCE_S = 30.0
"""A broker that takes no chunk for so long is given up."""


class Upload:
    """Chunks of one file, at most a few of them unacknowledged by the broker.

    `advance` is called again and again by the loop that also listens, so that a device hears of a new round, and tells
    of its health, however long an upload takes.
    """

    def __init__(
        self,
        uid: str,
        path: Path,
        missing: tuple[int, ...],
        publish: Callable[[int, bytes], Delivery],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file once, for its digest; `missing` empty means all chunks.

        Raises `OSError` when the file cannot be read and `ProtocolError` when it is empty or too large to be sent.
        """
        self.uid = uid
        self._publish = publish
        self._frames = FrameReader(path).frames(missing or None)
        self._open: deque[Delivery] = deque()
        self._clock = clock
        self._moved_s = clock()

    def advance(self) -> bool:
        """Hand over what there is room for; return whether the broker has taken everything.

        Raises `TransportError` when it does not, `OSError` or `StateError` when the file has gone meanwhile, and
        `ProtocolError` when a chunk was asked for that the file does not have.
        """
        while self._open and self._open[0].settled:
            self._open.popleft().wait(0.0)
            self._moved_s = self._clock()
        while len(self._open) < _WINDOW:
            entry = next(self._frames, None)
            if entry is None:
                break
            self._open.append(self._publish(*entry))
        if self._open and self._clock() - self._moved_s > _PATIENCE_S:
            raise TransportError(f"the broker took no chunk of update {self.uid} for {_PATIENCE_S:g} s")
        return not self._open
