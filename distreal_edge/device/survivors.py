"""Which filters survived in a round, and on how many images: what weighs the changes of an update."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from distreal_edge.dropout import Subset
    from distreal_edge.network import Plan

__all__ = ["MAXIMUM_KINDS", "SurvivorLog", "Survivors", "most_kinds"]

MAXIMUM_KINDS = 65536
_MAXIMUM_MASK_BYTES = 2**26
"""What all masks of one update may take in memory, a byte per filter."""
_UNPACKED_AT_ONCE = 2**19


def most_kinds(plan: Plan) -> int:
    """Return how many distinct subsets an update may tell of; 4,096 for 16,000 filters, never more than 65,536.

    Both sides unpack the masks to a byte per filter, and must not be made to take more memory than that.
    """
    return min(MAXIMUM_KINDS, _MAXIMUM_MASK_BYTES // (plan.filters + 1))


@dataclass(frozen=True, slots=True, eq=False)
class Survivors:
    """The distinct subsets of a round, a bit per filter, uint8 `[kinds, ceil(filters / 8)]`; int64 images `[kinds]`."""

    packed: NDArray[np.uint8]
    images: NDArray[np.int64]
    filters: int

    @classmethod
    def of(cls, kept: NDArray[np.bool_], images: NDArray[np.int64]) -> Survivors:
        """Pack masks, bool `[kinds, filters + 1]`, the last entry always true."""
        return cls(np.packbits(kept[:, :-1], axis=1), images, kept.shape[1] - 1)

    @property
    def whole(self) -> bool:
        """Whether every mini-batch kept every filter."""
        spare = -self.filters % 8
        return not self.filters or bool(
            np.all(self.packed[:, :-1] == 0xFF) and np.all(self.packed[:, -1] | ((1 << spare) - 1) == 0xFF)
        )

    @property
    def tidy(self) -> bool:
        """Whether the bits after the last filter are zero, so that one subset has one form."""
        spare = -self.filters % 8
        return not spare or not np.any(self.packed[:, -1] & ((1 << spare) - 1))

    def kept(self) -> NDArray[np.bool_]:
        """Return the masks, bool `[kinds, filters + 1]`."""
        kept = np.ones((len(self.packed), self.filters + 1), dtype=np.bool_)
        if self.filters:
            kept[:, :-1] = np.unpackbits(self.packed, axis=1, count=self.filters).astype(np.bool_)
        return kept

    def images_of_filters(self, filters: NDArray[np.int32]) -> NDArray[np.float64]:
        """Return on how many images each of these filters survived; -1 is never dropped."""
        counted = np.zeros(filters.shape)
        for kept, images in self._parts(filters):
            counted += images @ kept
        return counted

    def images_of_pairs(self, rows: NDArray[np.int32], columns: NDArray[np.int32]) -> NDArray[np.float64]:
        """Return on how many images filters of rows `[groups, r]` and columns `[groups, c]` both survived.

        float64 `[groups, r, c]`: one matrix product `[r, kinds] x [kinds, c]` per group, a bounded part of the kinds
        at a time.
        """
        counted = np.zeros((*rows.shape, columns.shape[1]))
        both = np.concatenate([rows.reshape(-1), columns.reshape(-1)])
        for kept, images in self._parts(both):
            of_rows = (kept[:, : rows.size] * images[:, None]).reshape(-1, *rows.shape)  # kinds, groups, r
            of_columns = kept[:, rows.size :].reshape(-1, *columns.shape)  # kinds, groups, c
            counted += np.matmul(of_rows.transpose(1, 2, 0), of_columns.transpose(1, 0, 2))
        return counted

    def _parts(self, filters: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield the masks of some filters, 0 or 1 in float64 `[kinds, filters]`, and the images of these kinds."""
        places, shifts = filters.reshape(-1) >> 3, (7 - (filters.reshape(-1) & 7)).astype(np.uint8)
        never_dropped = filters.reshape(-1) < 0
        at_once = max(1, _UNPACKED_AT_ONCE // max(1, filters.size))
        for begin in range(0, len(self.packed), at_once):
            if self.filters:
                kept = ((self.packed[begin : begin + at_once][:, places] >> shifts) & 1).astype(np.float64)
            else:
                kept = np.ones((len(self.packed[begin : begin + at_once]), filters.size))
            kept[:, never_dropped] = 1.0
            yield kept, self.images[begin : begin + at_once].astype(np.float64)


class SurvivorLog:
    """Collect which filters survived, and on how many images: one entry per distinct subset, `most_kinds` at most."""

    def __init__(self, plan: Plan) -> None:
        """Start an empty log for a plan's filters."""
        self._sizes = plan.sizes
        self._most = most_kinds(plan)
        self._images: dict[bytes, int] = {}

    def has_room(self, subset: Subset) -> bool:
        """Return whether a mini-batch of this subset can still be noted."""
        return len(self._images) < self._most or self._key(subset) in self._images

    def add(self, subset: Subset, images: int) -> None:
        """Note that a mini-batch of so many images trained this subset."""
        key = self._key(subset)
        self._images[key] = self._images.get(key, 0) + images

    @property
    def kinds(self) -> int:
        """How many distinct subsets there were."""
        return len(self._images)

    def survivors(self) -> Survivors:
        """Return what was collected."""
        filters = sum(self._sizes)
        packed = np.frombuffer(b"".join(self._images), dtype=np.uint8).reshape(len(self._images), ceil(filters / 8))
        return Survivors(packed, np.array(list(self._images.values()), dtype=np.int64), filters)

    def arrays(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return `Update.kept` and `Update.kept_images`."""
        survivors = self.survivors()
        return survivors.kept(), survivors.images

    def _key(self, subset: Subset) -> bytes:
        return np.packbits(subset.mask(self._sizes)[:-1]).tobytes()
