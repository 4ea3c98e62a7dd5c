"""The official Python version of CIFAR-10 and CIFAR-100: pickled batches, read without running what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.data.cifar_binary import IMAGE_BYTES, IMAGE_SHAPE, all_or_none
from distreal_edge.data.dataset import Dataset, Images, Labels, Split
from distreal_edge.data.inert_pickle import read_inert_pickle
from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from pathlib import Path

CIFAR10_FILES: Final[dict[Split, tuple[str, ...]]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
CIFAR100_FILES: Final[dict[Split, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}


def read_cifar10_python(root: Path, split: Split) -> Dataset | None:
    """Read CIFAR-10 under `root`, or return None when it is not there in this form."""
    folders = (root, root / "cifar-10-batches-py")
    return _read(folders, CIFAR10_FILES[split], name="cifar10", classes=10, label_key="labels")


def read_cifar100_python(root: Path, split: Split) -> Dataset | None:
    """Read CIFAR-100 with its 100 fine labels under `root`, or return None when it is not there in this form."""
    folders = (root, root / "cifar-100-python")
    return _read(folders, CIFAR100_FILES[split], name="cifar100", classes=100, label_key="fine_labels")


def _read(
    folders: tuple[Path, ...], file_names: tuple[str, ...], *, name: str, classes: int, label_key: str
) -> Dataset | None:
    paths = all_or_none(folders, file_names)
    if paths is None:
        return None
    batches = [_read_batch(path, classes=classes, label_key=label_key) for path in paths]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return Dataset(images.reshape(-1, *IMAGE_SHAPE), labels, classes, name=name)


def _read_batch(path: Path, *, classes: int, label_key: str) -> tuple[Images, Labels]:
    batch = read_inert_pickle(path)
    for key in ("data", label_key):
        if key not in batch:
            raise DataError(f"{path}: no {key!r} in it, only {', '.join(sorted(batch))}; this is another dataset")
    data, labels = batch["data"], batch[label_key]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != IMAGE_BYTES:
        raise DataError(f"{path}: 'data' is not an array [N, {IMAGE_BYTES}] of unsigned bytes")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: {label_key!r} is not a list of integers")
    if len(labels) != len(data):
        raise DataError(
            f"{path}: {count_of(len(data), 'image')} but {count_of(len(labels), 'label')}; get the file again"
        )
    for index, label in enumerate(labels):
        if not 0 <= label < classes:
            raise DataError(f"{path}: the label of image {index} is outside 0..{classes - 1}; get the file again")
    return data, np.array(labels, np.int64)
