"""Model and table on their way out: each chunk published once for all who want it at about the same time."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from distreal_edge.errors import TransportError
from distreal_edge.transport import BlobReference, FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from distreal_edge.transport import Delivery

__all__ = ["Outbound"]

_log = logging.getLogger(__name__)
GATHER_S = 0.05
"""A chunk that is wanted is published so much later, because others may want it as well: a round begins for all."""
GATHER_S_PER_DEVICE = 0.001
"""And by so much more for each of them: what a broker needs to hand a chunk to a device, at 256 MiB a second. Published
sooner, it would come twice to all that have not got it yet."""
_WINDOW = 8


class Outbound:
    """The blobs that can be asked for, and which of their chunks are; times are of any clock that does not go back."""

    def __init__(self) -> None:
        """Offer nothing."""
        self._readers: dict[str, FrameReader] = {}
        self._wanted: dict[tuple[str, int], float] = {}
        self._open: deque[Delivery] = deque()
        self._gather_s = GATHER_S

    def expect(self, devices: int) -> None:
        """Note how many devices may want the same."""
        self._gather_s = GATHER_S + GATHER_S_PER_DEVICE * devices

    def offer(self, *blobs: bytes) -> tuple[BlobReference, ...]:
        """Offer these blobs and no others; return what a manifest says of each."""
        readers = [FrameReader(blob) for blob in blobs]
        self._readers = {reader.digest: reader for reader in readers}
        self._wanted = {chunk: since_s for chunk, since_s in self._wanted.items() if chunk[0] in self._readers}
        return tuple(BlobReference(reader.digest, reader.total_bytes, reader.count) for reader in readers)

    def want(self, digest: str, indices: Iterable[int], now: float) -> None:
        """Note that somebody wants chunks; those that there are not are left aside."""
        reader = self._readers.get(digest)
        if reader is not None:
            for index in indices:
                if index < reader.count:
                    self._wanted.setdefault((digest, index), now)

    @property
    def busy(self) -> bool:
        """Whether there is something to publish, or to be acknowledged by the broker."""
        return bool(self._wanted or self._open)

    def advance(self, publish: Callable[[str, int, bytes], Delivery], now: float) -> None:
        """Publish what is wanted, as far as the broker takes it without waiting; `publish(digest, index, frame)`."""
        try:
            while self._open and self._open[0].settled:
                self._open.popleft().wait(0.0)
            while self._wanted and len(self._open) < _WINDOW:
                (digest, index), since_s = next(iter(self._wanted.items()))
                if now - since_s < self._gather_s:
                    return
                del self._wanted[digest, index]
                self._open.append(publish(digest, index, self._readers[digest].frame(index)))
        except TransportError as error:
            # Everybody is connected anew, or will be, and asks again.
            _log.warning("not all chunks were sent: %s", error)
            self._wanted.clear()
            self._open.clear()
