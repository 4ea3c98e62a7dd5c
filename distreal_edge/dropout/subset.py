"""The survivors of every filter group for one mini-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Subset"]


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """The surviving filters of each group: sorted, distinct indices into that group, at least one per group.

    `survivors` holds one int64 array per filter group, in the order of the network's groups.
    """

    survivors: tuple[NDArray[np.int64], ...]

    @staticmethod
    def full(sizes: Sequence[int]) -> Subset:
        """Return the subset that keeps every filter of groups with these sizes."""
        return Subset(tuple(np.arange(size, dtype=np.int64) for size in sizes))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many filters of each group survive."""
        return tuple(len(kept) for kept in self.survivors)

    def check(self, sizes: Sequence[int]) -> None:
        """Raise `DataError` unless this is a subset of filter groups with these sizes."""
        if len(self.survivors) != len(sizes):
            groups = count_of(len(self.survivors), "group")
            message = f"a subset lists the survivors of {groups}, but the network has {len(sizes)}"
            raise DataError(message)
        survivors: tuple[object, ...] = self.survivors  # what callers pass is checked, not believed
        for position, (kept, size) in enumerate(zip(survivors, sizes, strict=True)):
            where = f"the subset's group {position}"
            if not isinstance(kept, np.ndarray):
                message = f"{where} must be a one-dimensional int64 array, got {type(kept).__name__}"
                raise DataError(message)
            if kept.ndim != 1 or kept.dtype != np.int64:
                message = f"{where} must be a one-dimensional int64 array, got {kept.dtype} {list(kept.shape)}"
                raise DataError(message)
            if len(kept) == 0:
                message = f"{where} keeps no filter; keep at least one"
                raise DataError(message)
            if kept[0] < 0 or kept[-1] >= size or np.any(kept[1:] <= kept[:-1]):
                message = f"{where} must be sorted, distinct and within 0..{size - 1}"
                raise DataError(message)

    def mask(self, sizes: Sequence[int]) -> NDArray[np.bool_]:
        """Return which filters survive, bool [filters + 1], groups one after the other.

        The last entry is always True: id -1, which stands for "never dropped", indexes it.
        """
        self.check(sizes)
        kept = np.zeros(sum(sizes) + 1, dtype=np.bool_)
        offset = 0
        for survivors, size in zip(self.survivors, sizes, strict=True):
            kept[offset + survivors] = True
            offset += size
        kept[-1] = True
        return kept
