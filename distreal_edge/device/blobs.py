"""The model and the table of the round at hand: what of them to ask for, and what of them has come, on the disk."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from distreal_edge.dropout import MAXIMUM_TABLE_BYTES
from distreal_edge.durable import make_folder
from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.network.file import MAXIMUM_FILE_BYTES
from distreal_edge.transport import GROUP_CHUNKS, PartialBlob, Want
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from pathlib import Path

    from distreal_edge.transport import BlobReference, Manifest

__all__ = ["Blobs"]

_NAME = re.compile(r"[0-9a-f]{64}\.(blob|part|part\.log)")
_FEW = GROUP_CHUNKS // 2
"""When no more than so many of the chunks that were asked for are still to come, more are asked for."""


class Blobs:
    """Collect what the newest manifest refers to.

    A blob that the last manifest referred to as well is kept: a table serves many rounds, and is fetched once. What an
    earlier run has fetched is taken up; other blobs are removed.

    Chunks are asked for a group at a time, the next when few of the last are still to come: so a slow device has no
    more than one and a half groups waiting for it at the broker, however large the model is.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be; raise `StateError` when that cannot be done."""
        self._folder = folder
        self._parts: dict[str, PartialBlob] = {}
        self._whole: set[str] = set()
        self._asked: set[tuple[str, int]] = set()
        make_folder(folder)

    def expect(self, manifest: Manifest) -> None:
        """Make room for a manifest's model and table, and drop everything else.

        Raises `ProtocolError` over the cap, and `StateError` when the disk cannot be read.
        """
        references = ((manifest.table, MAXIMUM_TABLE_BYTES), (manifest.model, MAXIMUM_FILE_BYTES))
        for reference, cap_bytes in references:
            if reference.bytes > cap_bytes:
                raise ProtocolError(
                    f"a blob of {count_of(reference.bytes, 'byte')} is announced, at most {cap_bytes} are taken here"
                )
        expected = {reference.digest: reference for reference, _ in references}
        self._remove_others(expected)
        self._whole &= set(expected)
        self._parts = {digest: part for digest, part in self._parts.items() if digest in expected}
        self._asked = {chunk for chunk in self._asked if chunk[0] in expected}
        for digest, reference in expected.items():
            if digest in self._whole or digest in self._parts:
                continue
            if self._is_whole(digest):
                self._whole.add(digest)
            else:
                path = self._folder / f"{digest}.part"
                self._parts[digest] = PartialBlob(path, digest=digest, total_bytes=reference.bytes)
                self._finish(digest)

    def add(self, digest: str, frame: bytes, where: str) -> bool:
        """Take a chunk in and return whether it is of use.

        Raises `ProtocolError` when it is damaged, and `StateError` when the disk does not take it.
        """
        part = self._parts.get(digest)
        if part is None:
            return False
        before = set(part.missing)
        if part.add(frame, where=where).duplicate:
            return False
        self._asked -= {(digest, index) for index in before - set(part.missing)}
        self._finish(digest)
        return True

    @property
    def complete(self) -> bool:
        """Whether everything that is expected is there."""
        return bool(self._whole) and not self._parts

    def wanted(self, *, again: bool = False) -> tuple[Want, ...]:
        """Return what to ask for now: the next chunks, none while enough of them are on their way.

        `again`: nothing that was asked for will come any more.
        """
        if again:
            self._asked.clear()
        if len(self._asked) > _FEW:
            return ()
        wants: list[Want] = []
        room = GROUP_CHUNKS
        for digest, part in self._parts.items():
            chosen = tuple(index for index in part.missing if (digest, index) not in self._asked)[:room]
            if chosen:
                wants.append(Want(digest, chosen))
                self._asked.update((digest, index) for index in chosen)
                room -= len(chosen)
        return tuple(wants)

    @property
    def groups(self) -> frozenset[int]:
        """The groups of the chunks that were asked for and are still to come."""
        return frozenset(index // GROUP_CHUNKS for _, index in self._asked)

    def data(self, reference: BlobReference) -> bytes:
        """Return a complete blob; raise `StateError` when it cannot be read or has changed."""
        path = self._folder / f"{reference.digest}.blob"
        try:
            data = path.read_bytes()
        except OSError as error:
            self._whole.discard(reference.digest)
            raise StateError(
                f"{path}: cannot be read: {error.strerror}; it is fetched again in the next round"
            ) from None
        if hashlib.sha256(data).hexdigest() != reference.digest:
            self._whole.discard(reference.digest)
            path.unlink(missing_ok=True)
            raise StateError(f"{path}: has changed since it was written; it is fetched again in the next round")
        return data

    def _finish(self, digest: str) -> None:
        part = self._parts[digest]
        if part.missing:
            return
        try:
            whole = part.is_whole()
        finally:
            # What is not whole is missing again, and has to be asked for anew.
            self._asked = {chunk for chunk in self._asked if chunk[0] != digest}
        if whole:
            part.move(self._folder / f"{digest}.blob")
            del self._parts[digest]
            self._whole.add(digest)

    def _is_whole(self, digest: str) -> bool:
        path = self._folder / f"{digest}.blob"
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                    return True
            path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StateError(f"{path}: cannot be read: {error.strerror}; check the folder's owner") from None
        return False

    def _remove_others(self, expected: dict[str, BlobReference]) -> None:
        try:
            for path in self._folder.iterdir():
                if _NAME.fullmatch(path.name) and path.name.partition(".")[0] not in expected:
                    path.unlink()
        except OSError as error:
            raise StateError(f"{self._folder}: cannot be cleared: {error.strerror}; check its owner") from None
