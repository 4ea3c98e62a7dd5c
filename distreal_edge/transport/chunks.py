"""Cut bytes into self-describing frames, and read a frame: no clock, no socket, no file kept open.

`docs/protocol.md` has the frame byte by byte. A frame carries at most 256 KiB, so that neither the broker nor a client
ever holds a whole model as one message.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "CHUNK_BYTES",
    "FRAME_BYTES",
    "GROUP_CHUNKS",
    "LARGEST_BLOB_BYTES",
    "MOST_CHUNKS",
    "Frame",
    "FrameReader",
    "Progress",
    "chunk_count",
    "chunk_length",
    "parse_frame",
    "split",
]

CHUNK_BYTES = 256 * 1024
GROUP_CHUNKS = 8
"""Chunks that a device subscribes to together: 2 MiB."""
LARGEST_BLOB_BYTES = 1 << 30
MOST_CHUNKS = LARGEST_BLOB_BYTES // CHUNK_BYTES

MAGIC = b"DRCK"
VERSION = 1
# magic, version, three zero bytes, index, count, total bytes, length of this chunk, SHA-256 of the whole; big-endian
HEADER = struct.Struct(">4sB3sIIQI32s")
FRAME_BYTES = HEADER.size + CHUNK_BYTES
_ZEROS = bytes(3)


def chunk_count(total_bytes: int) -> int:
    """Return how many chunks `total_bytes` bytes make; raise ProtocolError outside 1 byte to 1 GiB."""
    if not 1 <= total_bytes <= LARGEST_BLOB_BYTES:
        raise ProtocolError(
            f"a blob of {count_of(total_bytes, 'byte')}: from 1 to {LARGEST_BLOB_BYTES} bytes can be sent"
        )
    return -(-total_bytes // CHUNK_BYTES)


def chunk_length(index: int, total_bytes: int) -> int:
    """Return the bytes in chunk `index` of a blob of `total_bytes`: all chunks are full but the last."""
    return min(CHUNK_BYTES, total_bytes - index * CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class Frame:
    """One parsed frame: chunk `index` of `count`, of a blob of `total_bytes` whose SHA-256 is `digest` (hex)."""

    index: int
    count: int
    total_bytes: int
    digest: str
    chunk: memoryview


def parse_frame(frame: bytes | bytearray | memoryview, *, where: str = "frame") -> Frame:
    """Read one frame, checking everything that it says about itself; raise ProtocolError naming `where`."""
    if len(frame) < HEADER.size:
        raise ProtocolError(f"{where}: {count_of(len(frame), 'byte')}, too few for a frame's header of {HEADER.size}")
    magic, version, zeros, index, count, total_bytes, length, digest = HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise ProtocolError(f"{where}: starts with {magic!r}, a frame starts with {MAGIC!r}")
    if version != VERSION or zeros != _ZEROS:
        raise ProtocolError(f"{where}: frame version {version} (flags {zeros.hex()}), only version {VERSION} is known")
    try:
        expected_count = chunk_count(total_bytes)
    except ProtocolError as error:
        raise ProtocolError(f"{where}: {error}") from None
    if count != expected_count:
        raise ProtocolError(
            f"{where}: says {count_of(count, 'chunk')}, but {count_of(total_bytes, 'byte')} must have {expected_count}"
        )
    if index >= count:
        raise ProtocolError(f"{where}: chunk {index} is out of range, there are {count}")
    if length != chunk_length(index, total_bytes):
        expected = chunk_length(index, total_bytes)
        raise ProtocolError(f"{where}: chunk {index} says {count_of(length, 'byte')}, it must have {expected}")
    if len(frame) != HEADER.size + length:
        raise ProtocolError(f"{where}: {len(frame)} bytes arrived, header and chunk make {HEADER.size + length}")
    return Frame(index, count, total_bytes, digest.hex(), memoryview(frame)[HEADER.size :])


class FrameReader:
    """Make the frames of some bytes, or of a file that is read chunk by chunk and never held as a whole.

    `source` is bytes-like, or the path of a file that does not change while it is being sent. Making the reader reads
    everything once, for the digest. Raises ProtocolError for an empty source or one over 1 GiB.
    """

    def __init__(self, source: bytes | bytearray | memoryview | Path) -> None:
        self._source = source
        self.total_bytes = source.stat().st_size if isinstance(source, Path) else memoryview(source).nbytes
        self.count = chunk_count(self.total_bytes)
        digest = hashlib.sha256()
        for index in range(self.count):
            digest.update(self._chunk(index))
        self._digest = digest.digest()
        self.digest = digest.hexdigest()

    def frame(self, index: int) -> bytes:
        """Return the frame of chunk `index`; raise ProtocolError out of range, StateError if the file has changed."""
        if not 0 <= index < self.count:
            raise ProtocolError(f"chunk {index} was asked for, there are {self.count}")
        chunk = self._chunk(index)
        header = HEADER.pack(MAGIC, VERSION, _ZEROS, index, self.count, self.total_bytes, len(chunk), self._digest)
        return b"".join((header, chunk))

    def frames(self, indices: Iterable[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (index, frame) for the given chunks, for all of them when `indices` is None."""
        for index in range(self.count) if indices is None else indices:
            yield index, self.frame(index)

    def _chunk(self, index: int) -> bytes | memoryview:
        start, length = index * CHUNK_BYTES, chunk_length(index, self.total_bytes)
        if not isinstance(self._source, Path):
            return memoryview(self._source).cast("B")[start : start + length]
        with self._source.open("rb") as file:
            file.seek(start)
            chunk = file.read(length)
        if len(chunk) != length:
            raise StateError(f"{self._source}: has become shorter while it is being sent; leave it until it is sent")
        return chunk


def split(data: bytes | bytearray | memoryview) -> list[bytes]:
    """Return all frames of `data`, in order; raise ProtocolError when it is empty or over 1 GiB."""
    return [frame for _, frame in FrameReader(data).frames()]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a blob is: chunks `received` of `count`; `duplicate` when the last frame brought nothing new."""

    received: int
    count: int
    duplicate: bool = False
