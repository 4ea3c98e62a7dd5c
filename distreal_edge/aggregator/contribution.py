"""An update as an average sees it: its changes piece by piece, and which elements it has a say in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.device import elements_of, pieces_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distreal_edge.device import Piece, UpdateReader
    from distreal_edge.network import Plan

__all__ = ["Contribution"]

_KEPT_BYTES: Final = 2**16
"""Survivors larger than this are read anew for every piece, so that many devices take little memory."""
_ELEMENTS: Final = 2**16


class Contribution:
    """An update that was trained on some images, whose changes count `factor` times."""

    def __init__(self, reader: UpdateReader) -> None:
        """Take a checked update."""
        survivors = reader.survivors()
        self.reader = reader
        self.factor = 1.0
        self.whole = survivors.whole
        """Whether all of the network was trained in every mini-batch."""
        self._survivors = survivors if survivors.packed.nbytes <= _KEPT_BYTES else None

    def read(self, piece: Piece, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Write the changes of a piece into `out`, as they were sent, and return it."""
        return self.reader.read(piece.begin, piece.end, out)

    def images(self, piece: Piece) -> NDArray[np.float64]:
        """Return on how many images each pair of a piece was trained."""
        if self.whole:
            return np.full((piece.end - piece.begin) // piece.kernel, float(self.reader.header.images))
        return piece.images(self._survivors if self._survivors is not None else self.reader.survivors())

    def trained(self, piece: Piece) -> NDArray[np.bool_]:
        """Return which pairs of a piece were trained."""
        return self.images(piece) > 0.0

    def elements(self, plan: Plan) -> int:
        """Return how many elements were trained."""
        if self.whole:
            return elements_of(plan)
        return sum(piece.kernel * int(np.count_nonzero(self.trained(piece))) for piece in pieces_of(plan, _ELEMENTS))
