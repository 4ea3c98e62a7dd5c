"""Cut bytes into self-describing frames, and put frames together again: no clock, no socket, no file kept open.

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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "CHUNK_BYTES",
    "FRAME_BYTES",
    "GROUP_CHUNKS",
    "LARGEST_BLOB_BYTES",
    "MOST_CHUNKS",
    "Assembler",
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
        raise ProtocolError(f"a blob of {total_bytes} bytes: from 1 to {LARGEST_BLOB_BYTES} bytes can be sent")
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
        raise ProtocolError(f"{where}: {len(frame)} bytes are too few for a frame's header of {HEADER.size}")
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
        raise ProtocolError(f"{where}: says {count} chunks, but {total_bytes} bytes make {expected_count}")
    if index >= count:
        raise ProtocolError(f"{where}: chunk {index} is out of range, there are {count}")
    if length != chunk_length(index, total_bytes):
        expected = chunk_length(index, total_bytes)
        raise ProtocolError(f"{where}: chunk {index} says {length} bytes, it must have {expected}")
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
    """How far an assembly is: chunks `received` of `count`; `duplicate` when the last frame brought nothing new."""

    received: int
    count: int
    duplicate: bool = False

    @property
    def complete(self) -> bool:
        """Whether every chunk has arrived and the digest was right."""
        return self.received == self.count


class Assembler:
    """Put frames together, in whatever order they come, however often.

    Memory is taken only as chunks arrive, and never more than `cap_bytes` for the chunks, because a frame that speaks
    of a larger blob is refused. With `digest` (SHA-256, hex) and `total_bytes` given, as a manifest gives them, a frame
    of anything else is refused; without, the first frame decides and later ones must agree with it.
    """

    def __init__(self, *, cap_bytes: int, digest: str | None = None, total_bytes: int | None = None) -> None:
        if total_bytes is not None and total_bytes > cap_bytes:
            raise ProtocolError(f"a blob of {total_bytes} bytes is announced, at most {cap_bytes} are taken here")
        self.cap_bytes = cap_bytes
        self._announced_digest, self._announced_bytes = digest, total_bytes
        self._chunks: dict[int, bytes] = {}
        self._whole: bytes | None = None
        self.digest, self.total_bytes = digest, total_bytes

    @property
    def count(self) -> int | None:
        """The number of chunks; None while neither an announcement nor a frame has told."""
        return None if self.total_bytes is None else chunk_count(self.total_bytes)

    @property
    def received(self) -> int:
        """How many different chunks have arrived."""
        return (self.count or 0) if self.complete else len(self._chunks)

    @property
    def complete(self) -> bool:
        """Whether every chunk has arrived and the digest was right."""
        return self._whole is not None

    @property
    def missing(self) -> tuple[int, ...]:
        """The sorted indices that have not arrived. Empty also while `count` is None."""
        if self.complete or self.count is None:
            return ()
        return tuple(index for index in range(self.count) if index not in self._chunks)

    @property
    def data(self) -> bytes:
        """The whole blob; raises ProtocolError while it is incomplete."""
        if self._whole is None:
            raise ProtocolError(f"the blob is incomplete: {self.received} of {self.count or '?'} chunks have arrived")
        return self._whole

    def add(self, frame: bytes | bytearray | memoryview, *, index: int | None = None, where: str = "frame") -> Progress:
        """Take one frame and say how far the assembly is; `index` is the chunk that its topic says it is.

        Raises ProtocolError, and stays as it was, for a malformed frame or one that contradicts what is known. When
        the last chunk shows that the digest is wrong, drops everything, starts over and raises ProtocolError.
        """
        parsed = parse_frame(frame, where=where)
        if index not in (None, parsed.index):
            raise ProtocolError(f"{where}: holds chunk {parsed.index}, its topic says {index}")
        if parsed.total_bytes > self.cap_bytes:
            raise ProtocolError(
                f"{where}: a blob of {parsed.total_bytes} bytes, at most {self.cap_bytes} are taken here"
            )
        if self.total_bytes not in (None, parsed.total_bytes):
            raise ProtocolError(f"{where}: a blob of {parsed.total_bytes} bytes, {self.total_bytes} were announced")
        if self.digest not in (None, parsed.digest):
            raise ProtocolError(f"{where}: belongs to blob {parsed.digest[:12]}, {str(self.digest)[:12]} is expected")
        self.total_bytes, self.digest = parsed.total_bytes, parsed.digest
        if self.complete or parsed.index in self._chunks:
            return Progress(self.received, parsed.count, duplicate=True)
        self._chunks[parsed.index] = bytes(parsed.chunk)
        if len(self._chunks) == parsed.count:
            self._finish(where)
        return Progress(self.received, parsed.count)

    def start_over(self) -> None:
        """Forget every chunk, and what only frames have told."""
        self._chunks.clear()
        self._whole = None
        self.digest, self.total_bytes = self._announced_digest, self._announced_bytes

    def _finish(self, where: str) -> None:
        whole = b"".join(self._chunks[index] for index in range(len(self._chunks)))
        found, expected = hashlib.sha256(whole).hexdigest(), self.digest
        if found != expected:
            self.start_over()
            raise ProtocolError(
                f"{where}: the assembled blob has SHA-256 {found[:12]}, {str(expected)[:12]} was announced: "
                "a chunk is damaged, all must be sent again"
            )
        self._whole = whole
        self._chunks.clear()
