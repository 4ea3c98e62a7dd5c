"""The model and the table of the round at hand, put together from chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.dropout import MAXIMUM_TABLE_BYTES
from distreal_edge.network.file import MAXIMUM_FILE_BYTES
from distreal_edge.transport import Assembler, Want

if TYPE_CHECKING:
    from distreal_edge.transport import BlobReference, Manifest

__all__ = ["Blobs"]


class Blobs:
    """Collect what the newest manifest refers to.

    A blob that the last manifest referred to as well is kept: a table serves many rounds, and is sent once.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._assemblers: dict[str, Assembler] = {}

    def expect(self, manifest: Manifest) -> None:
        """Make room for a manifest's model and table, and drop everything else; raise `ProtocolError` over the cap."""
        self._assemblers = {
            reference.digest: self._assemblers.get(reference.digest) or _assembler(reference, cap)
            for reference, cap in ((manifest.model, MAXIMUM_FILE_BYTES), (manifest.table, MAXIMUM_TABLE_BYTES))
        }

    def add(self, digest: str, frame: bytes, where: str) -> bool:
        """Take a chunk in and return whether it is of use; raise `ProtocolError` when it is damaged."""
        assembler = self._assemblers.get(digest)
        return assembler is not None and not assembler.add(frame, where=where).duplicate

    @property
    def complete(self) -> bool:
        """Whether everything that is expected is there."""
        return bool(self._assemblers) and all(assembler.complete for assembler in self._assemblers.values())

    def wanted(self) -> tuple[Want, ...]:
        """Return what to ask for."""
        return tuple(
            Want(digest, assembler.missing) for digest, assembler in self._assemblers.items() if assembler.missing
        )

    def data(self, reference: BlobReference) -> bytes:
        """Return a complete blob."""
        return self._assemblers[reference.digest].data


def _assembler(reference: BlobReference, cap_bytes: int) -> Assembler:
    return Assembler(cap_bytes=cap_bytes, digest=reference.digest, total_bytes=reference.bytes)
