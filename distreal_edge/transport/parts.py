"""Blobs of which a part has arrived, on the disk: what is whole of them outlives a kill and a power cut.

Chunks are written at their place in a file, and each is noted with its CRC in a log beside it. Nothing is synced until
all is there: after a power cut file and log may each have lost something, and the CRCs tell what is to be had of both.
The log is a header (magic, version, three zero bytes, total bytes, SHA-256 of the blob, CRC of all that) and records of
twelve bytes (index, CRC of the chunk, CRC of these eight bytes); big-endian.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

from distreal_edge.durable import sync_folder
from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.transport import chunks
from distreal_edge.transport.chunks import Progress, chunk_count, chunk_length, parse_frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["DiskError", "PartialBlob"]

_HEADER = struct.Struct(">4sB3sQ32sI")
_RECORD = struct.Struct(">III")
_MAGIC, _VERSION = b"DRPL", 1


class DiskError(StateError):
    """The disk does not take what has arrived: what it has is kept, and what it has not may come again."""


class PartialBlob:
    """One blob on its way in, at `path`; what an earlier process left there of the same blob is taken up.

    Memory is taken for one chunk at a time. Every method that touches the disk raises `DiskError` when that refuses;
    what was there is then still there, and the chunk at hand can be added again.
    """

    def __init__(self, path: Path, *, digest: str, total_bytes: int) -> None:
        """Look for what is there already; `digest` is the whole blob's SHA-256 in hex."""
        self.path = path
        self.digest = digest
        self.total_bytes = total_bytes
        self.count = chunk_count(total_bytes)
        self._log = path.with_name(path.name + ".log")
        self._header = self._make_header()
        self._crcs: dict[int, int] = {}
        self._records = 0
        self._restore()

    @property
    def missing(self) -> tuple[int, ...]:
        """The sorted indices that have not arrived."""
        return tuple(index for index in range(self.count) if index not in self._crcs)

    @property
    def received(self) -> int:
        """How many different chunks have arrived."""
        return len(self._crcs)

    def add(self, frame: bytes | bytearray | memoryview, *, index: int | None = None, where: str = "frame") -> Progress:
        """Take one frame in; `index` is the chunk that its topic says it is.

        Raises ProtocolError, and stays as it was, for a frame that is malformed or of something else.
        """
        parsed = parse_frame(frame, where=where)
        if index not in (None, parsed.index):
            raise ProtocolError(f"{where}: holds chunk {parsed.index}, its topic says {index}")
        if parsed.total_bytes != self.total_bytes:
            raise ProtocolError(f"{where}: a blob of {parsed.total_bytes} bytes, {self.total_bytes} were announced")
        if parsed.digest != self.digest:
            raise ProtocolError(f"{where}: belongs to blob {parsed.digest[:12]}, {self.digest[:12]} is expected")
        if parsed.index in self._crcs:
            return Progress(self.received, self.count, duplicate=True)
        crc = zlib.crc32(parsed.chunk)
        try:
            with self._opened(self.path) as file:
                _write_at(file, parsed.index * chunks.CHUNK_BYTES, parsed.chunk)
            with self._opened(self._log) as file:
                if self._records == 0:
                    _write_at(file, 0, self._header)
                # At its place, so that a record that the disk took only half of does not shift those after it.
                _write_at(file, _HEADER.size + self._records * _RECORD.size, _record(parsed.index, crc))
        except OSError as error:
            raise self._refused(error) from None
        self._records += 1
        self._crcs[parsed.index] = crc
        return Progress(self.received, self.count)

    def is_whole(self) -> bool:
        """Hold the file against the digest once every chunk has arrived, and sync it; return whether it is right.

        When it is not because chunks have changed on the disk, these are missing again. When they are as they came, the
        sender's digest is wrong: everything is dropped, and ProtocolError raised.
        """
        if self.missing:
            return False
        found = hashlib.sha256()
        damaged: list[int] = []
        try:
            with self._opened(self.path) as file:
                file.truncate(self.total_bytes)
                for index, chunk in self._chunks(file):
                    found.update(chunk)
                    if zlib.crc32(chunk) != self._crcs[index]:
                        damaged.append(index)
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refused(error) from None
        if found.hexdigest() == self.digest:
            return True
        for index in damaged:
            del self._crcs[index]
        if damaged:
            return False
        self.discard()
        raise ProtocolError(
            f"the assembled blob has SHA-256 {found.hexdigest()[:12]}, {self.digest[:12]} was announced: "
            "it was damaged before it was sent"
        )

    def move(self, target: Path, *, durably: bool = True) -> None:
        """Give a whole blob its final place, on the same disk; unless `durably`, the folder is the caller's to sync."""
        try:
            self.path.replace(target)
            if durably:
                sync_folder(target.parent)
        except OSError as error:
            raise self._refused(error) from None
        self.discard()

    def discard(self) -> None:
        """Remove what is there; nothing has arrived then."""
        self._crcs.clear()
        self._records = 0
        for path in (self._log, self.path):
            with suppress(OSError):
                path.unlink()

    def _make_header(self) -> bytes:
        head = _HEADER.pack(_MAGIC, _VERSION, bytes(3), self.total_bytes, bytes.fromhex(self.digest), 0)[:-4]
        return head + zlib.crc32(head).to_bytes(4, "big")

    def _restore(self) -> None:
        try:
            logged = self._log.read_bytes()
            if not logged.startswith(self._header):
                self.discard()
                return
            self._records = (len(logged) - _HEADER.size) // _RECORD.size
            records = _RECORD.iter_unpack(logged[_HEADER.size :][: self._records * _RECORD.size])
            # Of several about the same chunk the last one counts.
            listed = {
                index: crc
                for index, crc, check in records
                if index < self.count and _record(index, crc)[-4:] == check.to_bytes(4, "big")
            }
            with self.path.open("rb") as file:
                self._crcs = {
                    index: listed[index]
                    for index, chunk in self._chunks(file, listed)
                    if zlib.crc32(chunk) == listed[index] and len(chunk) == chunk_length(index, self.total_bytes)
                }
        except FileNotFoundError:
            self.discard()
        except OSError as error:
            raise self._refused(error) from None

    def _chunks(self, file: BinaryIO, indices: dict[int, int] | None = None) -> Iterator[tuple[int, bytes]]:
        for index in sorted(self._crcs if indices is None else indices):
            file.seek(index * chunks.CHUNK_BYTES)
            yield index, file.read(chunk_length(index, self.total_bytes))

    def _opened(self, path: Path) -> BinaryIO:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640), "r+b", buffering=0)

    def _refused(self, error: OSError) -> DiskError:
        return DiskError(
            f"{self.path}: cannot be written: {error.strerror}; check the disk's space and the folder's owner: "
            "what has arrived is kept, and the rest comes again"
        )


def _record(index: int, crc: int) -> bytes:
    eight = _RECORD.pack(index, crc, 0)[:8]
    return eight + zlib.crc32(eight).to_bytes(4, "big")


def _write_at(file: BinaryIO, place: int, data: bytes | memoryview) -> None:
    file.seek(place)
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
