"""Model and table on their way out: each chunk published once for all who want it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from distreal_edge.errors import TransportError
from distreal_edge.transport import BlobReference, FrameReader

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator

    from distreal_edge.transport import Session, Topics

__all__ = ["Outbound"]

_log = logging.getLogger(__name__)
_LEAST_AT_ONCE = 4


class Outbound:
    """The blobs that can be asked for, and their chunks that are still to be sent."""

    def __init__(self) -> None:
        """Offer nothing."""
        self._readers: dict[str, FrameReader] = {}
        self._wanted: set[tuple[str, int]] = set()

    def offer(self, *blobs: bytes) -> tuple[BlobReference, ...]:
        """Offer these blobs and no others; return what a manifest says of each."""
        readers = [FrameReader(blob) for blob in blobs]
        self._readers = {reader.digest: reader for reader in readers}
        self._wanted = {chunk for chunk in self._wanted if chunk[0] in self._readers}
        return tuple(BlobReference(reader.digest, reader.total_bytes, reader.count) for reader in readers)

    def want_all(self, digest: str) -> None:
        """Note that everybody wants a whole blob."""
        self.want(digest, range(self._readers[digest].count))

    def want(self, digest: str, indices: Iterable[int]) -> None:
        """Note that somebody wants chunks; those that there are not are left aside."""
        reader = self._readers.get(digest)
        if reader is not None:
            self._wanted.update((digest, index) for index in indices if index < reader.count)

    def send(self, session: Session, topics: Topics, stop: threading.Event) -> None:
        """Publish what is wanted, until something arrives that is to be seen to."""
        if not self._wanted or not session.connected:
            return
        order = sorted(self._wanted)

        def frames() -> Iterator[tuple[int, bytes]]:
            for position, (digest, index) in enumerate(order):
                # Some go out in any case, or a broker that always has something to say would starve the devices.
                if position >= _LEAST_AT_ONCE and not session.events.empty():
                    return
                self._wanted.discard((digest, index))
                yield position, self._readers[digest].frame(index)

        try:
            session.send_frames(lambda position: topics.blob(*order[position]), frames(), stop=stop)
        except TransportError as error:
            # Who misses a chunk asks for it again.
            _log.warning("not all chunks were sent: %s", error)
