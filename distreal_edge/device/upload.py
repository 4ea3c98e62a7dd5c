"""One update on its way to the broker, a few chunks at a time, without ever waiting."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from distreal_edge.errors import ProtocolError, TransportError
from distreal_edge.transport import FrameReader, Offer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from distreal_edge.transport import Delivery

__all__ = ["Upload"]

_WINDOW = 4
_HEADER_KEY = "distreal_edge_update"
_MAXIMUM_HEADER_BYTES = 8 * 2**20
_PATIENCE_S = 120.0
"""A broker that takes no chunk for so long is given up: a chunk takes as much at 17 kbit/s."""


class _Document(msgspec.Struct, frozen=True):
    """The part of a safetensors header that is not about tensors."""

    metadata: dict[str, str] = msgspec.field(name="__metadata__")


class _Task(msgspec.Struct, frozen=True):
    """What an update's header says of the round that it is for."""

    round: int
    model: str


class Upload:
    """Chunks of one file, as they are asked for, at most a few of them unacknowledged by the broker.

    `advance` is called again and again by the loop that also listens, so that a device hears of a new round, and tells
    of its health, however long an upload takes.
    """

    def __init__(
        self,
        uid: str,
        path: Path,
        publish: Callable[[int, bytes], Delivery],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file once, for its digest.

        Raises `OSError` when the file cannot be read and `ProtocolError` when it is no update or too large to be sent.
        """
        self.uid = uid
        self._task = _task_of(path)
        self._publish = publish
        self._reader = FrameReader(path)
        self._waiting: deque[int] = deque()
        self._open: deque[Delivery] = deque()
        self._clock = clock
        self._moved_s = clock()

    def offer(self) -> Offer:
        """Return what to offer, and forget what was asked for: the answer tells anew."""
        self._waiting.clear()
        self._open.clear()
        reader = self._reader
        return Offer(self.uid, self._task.round, self._task.model, reader.digest, reader.total_bytes, reader.count)

    def ask(self, missing: Iterable[int]) -> None:
        """Note that chunks are asked for."""
        self._moved_s = self._clock()
        self._waiting.extend(index for index in missing if index not in self._waiting)

    @property
    def busy(self) -> bool:
        """Whether there is something to send, or to be acknowledged by the broker."""
        return bool(self._waiting or self._open)

    def advance(self) -> bool:
        """Hand over what there is room for; return whether the broker has taken everything that was asked for.

        Raises `TransportError` when it does not, `OSError` or `StateError` when the file has gone meanwhile, and
        `ProtocolError` when a chunk was asked for that the file does not have.
        """
        while self._open and self._open[0].settled:
            self._open.popleft().wait(0.0)
            self._moved_s = self._clock()
        while self._waiting and len(self._open) < _WINDOW:
            index = self._waiting.popleft()
            self._open.append(self._publish(index, self._reader.frame(index)))
        if self._open and self._clock() - self._moved_s > _PATIENCE_S:
            raise TransportError(f"the broker took no chunk of update {self.uid} for {_PATIENCE_S:g} s")
        return not self._open


def _task_of(path: Path) -> _Task:
    """Read of an update's header what an offer needs; what else is in it is the aggregator's to judge."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _MAXIMUM_HEADER_BYTES))
    try:
        metadata = msgspec.json.decode(header, type=_Document).metadata
        return msgspec.json.decode(metadata[_HEADER_KEY], type=_Task)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        raise ProtocolError(f"{path.name}: is damaged: its header is not that of an update") from None
