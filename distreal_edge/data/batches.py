"""Endless mini-batches of a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.data.dataset import Dataset, Images, Labels


class Batches:
    """Draw mini-batches (images uint8 [B, C, H, W], labels int64 [B]) without end, each a copy.

    Every epoch visits each image once, in an order drawn from `rng`. All batches are full: what is left at the end of
    an epoch opens the first batch of the next, so batch norm never meets a stray image (and an image may then appear
    twice in that one batch). A shard smaller than a batch gives batches of the whole shard. Same dataset, batch_size
    and state of rng: same batches.
    Raises DataError when batch_size is not positive, when there are no images, or when a batch of several images is
    asked of a shard of one.
    """

    __slots__ = ("_dataset", "_pending", "_rng", "batch_size")

    def __init__(self, dataset: Dataset, batch_size: int, rng: np.random.Generator) -> None:
        """Start before the first epoch."""
        if batch_size < 1:
            raise DataError(f"a batch of {batch_size} images cannot be drawn, give at least 1")
        if len(dataset) < min(batch_size, 2):
            raise DataError(
                f"dataset {dataset.name}: a shard of {count_of(len(dataset), 'image')} is too small for batches of"
                f" {batch_size}; give the device at least 2 images"
            )
        self.batch_size = min(batch_size, len(dataset))
        self._dataset = dataset
        self._rng = rng
        self._pending = np.empty(0, np.int64)

    def __iter__(self) -> Iterator[tuple[Images, Labels]]:
        """Return itself: iterating again goes on where the last batch was."""
        return self

    def __next__(self) -> tuple[Images, Labels]:
        """Return the next batch; there always is one."""
        if len(self._pending) < self.batch_size:
            epoch = self._rng.permutation(len(self._dataset))
            self._pending = np.concatenate([self._pending, epoch])
        chosen, self._pending = self._pending[: self.batch_size], self._pending[self.batch_size :]
        return self._dataset.images[chosen], self._dataset.labels[chosen]
