"""The official binary version of CIFAR-10 and CIFAR-100.

A file is a row of records: one label byte (CIFAR-100: the coarse label, then the fine one) and 3072 pixel bytes,
the red, green and blue plane of a 32x32 image one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.data.dataset import Dataset, Split
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

IMAGE_SHAPE: Final = (3, 32, 32)
IMAGE_BYTES: Final = 3 * 32 * 32
LARGEST_BYTES: Final = 1 << 30

CIFAR10_FILES: Final[dict[Split, tuple[str, ...]]] = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
CIFAR100_FILES: Final[dict[Split, tuple[str, ...]]] = {"train": ("train.bin",), "test": ("test.bin",)}


def read_cifar10_binary(root: Path, split: Split) -> Dataset | None:
    """Read CIFAR-10 under `root`, or return None when it is not there in this form."""
    folders = (root, root / "cifar-10-batches-bin")
    return _read(folders, CIFAR10_FILES[split], name="cifar10", classes=10, label_bytes=1)


def read_cifar100_binary(root: Path, split: Split) -> Dataset | None:
    """Read CIFAR-100 with its 100 fine labels under `root`, or return None when it is not there in this form."""
    folders = (root, root / "cifar-100-binary")
    return _read(folders, CIFAR100_FILES[split], name="cifar100", classes=100, label_bytes=2)


def all_or_none(folders: tuple[Path, ...], file_names: tuple[str, ...]) -> tuple[Path, ...] | None:
    """Return the files, in the first folder that has any of them, or None.

    Raises DataError when that folder has only some of them: training on a part would go unnoticed.
    """
    for folder in folders:
        paths = tuple(folder / file_name for file_name in file_names)
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            return paths
        if len(missing) < len(paths):
            raise DataError(f"{missing[0]} is missing although its neighbours are there; get the whole set again")
    return None


def _read(
    folders: tuple[Path, ...], file_names: tuple[str, ...], *, name: str, classes: int, label_bytes: int
) -> Dataset | None:
    paths = all_or_none(folders, file_names)
    if paths is None:
        return None
    record_bytes = label_bytes + IMAGE_BYTES
    counts = []
    for path in paths:
        size_bytes = path.stat().st_size
        if size_bytes == 0 or size_bytes % record_bytes or size_bytes > LARGEST_BYTES:
            raise DataError(
                f"{path}: {size_bytes} bytes are not a whole number of {record_bytes}-byte records;"
                f" the file is cut short or not {name}, get it again"
            )
        counts.append(size_bytes // record_bytes)
    images = np.empty((sum(counts), *IMAGE_SHAPE), np.uint8)
    labels = np.empty(sum(counts), np.int64)
    start = 0
    for path, count in zip(paths, counts, strict=True):
        records = np.fromfile(path, np.uint8).reshape(count, record_bytes)
        # CIFAR-100's fine label is the second byte; the coarse one before it is not used.
        fine = records[:, label_bytes - 1]
        if int(fine.max()) >= classes:
            first = int(np.argmax(fine >= classes))
            raise DataError(
                f"{path}: label {fine[first]} of record {first} is outside 0..{classes - 1};"
                f" this is not {name}, or the file is damaged"
            )
        images[start : start + count] = records[:, label_bytes:].reshape(count, *IMAGE_SHAPE)
        labels[start : start + count] = fine
        start += count
    return Dataset(images, labels, classes, name=name)
