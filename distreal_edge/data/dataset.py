"""Labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

Split = Literal["train", "test"]
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


# eq=False: comparing arrays gives arrays, so a generated __eq__ could only raise.
@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Hold labelled images, checked once when it is made.

    images: uint8 [N, C, H, W]. labels: int64 [N], each in 0..classes-1. writers: int32 [N], who wrote or took each
    image, numbered from 0, or None where the dataset does not know. N may be 0.
    Raises DataError when shapes, dtypes or ranges are anything else.
    """

    images: Images
    labels: Labels
    classes: int
    writers: npt.NDArray[np.int32] | None = None
    name: str = field(kw_only=True)

    def __post_init__(self) -> None:
        """Check every promise of the class."""
        if self.classes < 1:
            raise DataError(f"dataset {self.name}: {count_of(self.classes, 'class', 'classes')}, at least 1 is needed")
        _check_array(self.name, "images", self.images, np.dtype(np.uint8), 4, "[N, C, H, W]")
        count = len(self.images)
        if count and 0 in self.images.shape:
            raise DataError(f"dataset {self.name}: images of shape {self.images.shape} hold no pixels")
        _check_array(self.name, "labels", self.labels, np.dtype(np.int64), 1, "[N]")
        if len(self.labels) != count:
            raise DataError(
                f"dataset {self.name}: {count_of(count, 'image')} but {count_of(len(self.labels), 'label')}"
            )
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= self.classes))
        if outside.size:
            first = int(outside[0])
            raise DataError(
                f"dataset {self.name}: label {self.labels[first]} of image {first} is outside 0..{self.classes - 1}"
                f" ({count_of(outside.size, 'such label')})"
            )
        if self.writers is None:
            return
        _check_array(self.name, "writers", self.writers, np.dtype(np.int32), 1, "[N]")
        if len(self.writers) != count:
            raise DataError(
                f"dataset {self.name}: {count_of(count, 'image')} but {count_of(len(self.writers), 'writer')}"
            )
        if count and int(self.writers.min()) < 0:
            raise DataError(f"dataset {self.name}: a writer's number is negative, writers are numbered from 0")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Dataset:
        """Copy out the images at `indices`, in that order.

        Nothing of this dataset is shared with the result, so a device that keeps only its shard frees the rest.
        Raises DataError when an index is not an integer in 0..N-1.
        """
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise DataError(
                f"dataset {self.name}: take() needs a one-dimensional list of integers,"
                f" not {chosen.dtype} of shape {chosen.shape}"
            )
        if chosen.size and (int(chosen.min()) < 0 or int(chosen.max()) >= len(self)):
            raise DataError(
                f"dataset {self.name}: take() got indices {int(chosen.min())}..{int(chosen.max())},"
                f" but it has {count_of(len(self), 'image')}"
            )
        writers = None if self.writers is None else self.writers[chosen]
        return Dataset(self.images[chosen], self.labels[chosen], self.classes, writers, name=self.name)


def _check_array(name: str, what: str, value: object, dtype: np.dtype[Any], axes: int, shape: str) -> None:
    if not isinstance(value, np.ndarray):
        raise DataError(f"dataset {name}: {what} must be a numpy array {dtype} {shape}, not {type(value).__name__}")
    if value.dtype != dtype or value.ndim != axes:
        raise DataError(f"dataset {name}: {what} must be {dtype} {shape}, not {value.dtype} of shape {value.shape}")
