"""Which filters an element of a weight tensor belongs to: what a mini-batch touches, and what it leaves alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distreal_edge.network.operations import Shape

__all__ = ["Parameter"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class Parameter:
    """A trainable tensor: its shape, and the filters behind its axes (-1: never dropped).

    `rows` is int32 `[groups, outputs per group]` for the first axis. `columns` is int32 `[groups, inputs per group]`
    for the second, or None for a vector. `groups` are a convolution's, and 1 otherwise. An element is trained by a
    mini-batch exactly when the filter of its row and the filter of its column both survive.
    """

    shape: Shape
    rows: NDArray[np.int32]
    columns: NDArray[np.int32] | None

    def touched(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which elements a mini-batch trains, bool, broadcastable to `shape`; `kept` is `Subset.mask`."""
        rows = kept[self.rows]
        if self.columns is None:
            return rows.reshape(-1)
        return self._spread(rows[:, :, None] & kept[self.columns][:, None, :])

    def surviving(self, kept: NDArray[np.bool_]) -> int:
        """Return how many elements a mini-batch trains, without listing them; `kept` is `Subset.mask`."""
        rows = np.count_nonzero(kept[self.rows], axis=1)
        if self.columns is None:
            return int(rows.sum())
        columns = np.count_nonzero(kept[self.columns], axis=1)
        return int((rows * columns).sum()) * prod(self.shape[2:])

    def images_per_element(self, kept: NDArray[np.bool_], images: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return on how many images each element was trained, broadcastable to `shape`.

        `kept` is bool `[kinds, filters + 1]`, the masks of the distinct subsets that were used, and `images` int64
        `[kinds]` the images trained with each.
        """
        weighted = images.astype(np.float64)
        if self.columns is None:
            counted: NDArray[np.float64] = weighted @ kept[:, self.rows.reshape(-1)]
            return counted
        rows = kept[:, self.rows] * weighted[:, None, None]  # kinds, groups, outputs
        columns = kept[:, self.columns].astype(np.float64)  # kinds, groups, inputs
        # One matrix product per group: [outputs, kinds] x [kinds, inputs].
        return self._spread(np.matmul(rows.transpose(1, 2, 0), columns.transpose(1, 0, 2)))

    def _spread(self, pairs: NDArray[_Scalar]) -> NDArray[_Scalar]:
        rows = self.shape[0]
        trailing = (1,) * (len(self.shape) - 2)
        return pairs.reshape(rows, pairs.shape[2], *trailing)
