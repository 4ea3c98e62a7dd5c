"""Datasets in numpy's npz files, with Keras' names or with ours."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from distreal_edge.data.dataset import Dataset, Images, Labels, Split
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

Arrays = dict[str, npt.NDArray[Any]]

LARGEST_BYTES: Final = 8 << 30
EITHER_SPLIT: Final = ("images", "labels", "writers", "classes", "layout", "y_train", "y_test")
CHANNELS: Final = (1, 2, 3, 4)
OTHER: Final[dict[Split, Split]] = {"train": "test", "test": "train"}


def read_npz(root: Path, split: Split) -> Dataset | None:
    """Read one split from a file, or from train.npz and test.npz in a folder; None when there is no such file.

    A file holds either x_train, y_train, x_test, y_test (Keras' names) or images, labels and perhaps writers: the
    latter is one split, the training one unless the file is called test.npz in a folder. Images are uint8, [N, H, W],
    [N, H, W, C] or [N, C, H, W]; labels any integers, [N] or [N, 1]. A scalar `classes` sets the number of classes,
    else the largest label of both splits does; a string `layout`, "NCHW" or "NHWC", ends all doubt about the axes.
    """
    path = root / f"{split}.npz" if root.is_dir() else root
    if not path.is_file():
        return None
    arrays = _read_arrays(path, (*EITHER_SPLIT, f"x_{split}"))
    other: Arrays = {}
    if root.is_dir() and (root / f"{OTHER[split]}.npz").is_file() and "classes" not in arrays:
        other = _read_arrays(root / f"{OTHER[split]}.npz", ("labels",))
    if "images" in arrays and not root.is_dir() and split != "train":
        raise DataError(
            f"{path}: holds one split under 'images', which is taken as the training one; save x_train, y_train,"
            " x_test, y_test, or give a folder with train.npz and test.npz"
        )
    if "images" in arrays:
        names = ("images", "labels")
        writers = arrays.get("writers")
    else:
        names = (f"x_{split}", f"y_{split}")
        writers = None
        other = {"labels": arrays[f"y_{OTHER[split]}"]} if f"y_{OTHER[split]}" in arrays else {}
    for name in names:
        if name not in arrays:
            raise DataError(
                f"{path}: no array {name!r} in it; it needs x_train, y_train, x_test, y_test, or images and labels"
            )
    labels = _labels(path, names[1], arrays[names[1]])
    others = _labels(path, "labels of the other split", other["labels"]) if "labels" in other else labels[:0]
    classes = _classes(path, arrays, labels, others)
    images = _images(path, names[0], arrays[names[0]], arrays.get("layout"))
    if writers is not None and np.issubdtype(writers.dtype, np.integer):
        writers = writers.astype(np.int32)
    return Dataset(images, labels, classes, writers, name=path.stem if root.is_file() else root.name)


def _read_arrays(path: Path, only: tuple[str, ...]) -> Arrays:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an npz file, or cut short; write it with numpy.savez")
    try:
        with zipfile.ZipFile(path) as archive:
            total_bytes = sum(item.file_size for item in archive.infolist())
        if total_bytes > LARGEST_BYTES:
            raise DataError(f"{path}: {total_bytes} bytes unpacked, the largest accepted is {LARGEST_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in only if name in arrays}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, MemoryError) as problem:
        raise DataError(f"{path}: damaged ({problem}); write it again") from problem
    except ValueError as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(
            f"{path}: an array cannot be read ({problem}); save plain arrays of numbers, objects are never unpickled"
        ) from problem


def _images(path: Path, name: str, array: npt.NDArray[Any], layout: npt.NDArray[Any] | None) -> Images:
    if array.dtype != np.uint8:
        raise DataError(
            f"{path}: {name!r} is {array.dtype}, not uint8; save floats of 0..1 as (x * 255).round().astype('uint8')"
        )
    if array.ndim == 3:  # N, H, W
        return array[:, np.newaxis]
    if array.ndim != 4:  # N, C, H, W
        raise DataError(f"{path}: {name!r} has shape {array.shape}, not [N, H, W], [N, H, W, C] or [N, C, H, W]")
    if _channels_last(path, name, array.shape, layout):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    return array


def _channels_last(path: Path, name: str, shape: tuple[int, ...], layout: npt.NDArray[Any] | None) -> bool:
    if layout is not None:
        if str(layout) not in {"NCHW", "NHWC"}:
            raise DataError(f"{path}: 'layout' is {layout!s}, not NCHW or NHWC")
        return str(layout) == "NHWC"
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        raise DataError(
            f"{path}: {name!r} of shape {shape} could be [N, C, H, W] or [N, H, W, C];"
            " save a string 'layout' beside it, numpy.savez(..., layout='NCHW') or 'NHWC'"
        )
    return last


def _labels(path: Path, name: str, array: npt.NDArray[Any]) -> Labels:
    if array.ndim == 2 and array.shape[1] == 1:  # Keras' CIFAR has [N, 1]
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{path}: {name!r} is {array.dtype} of shape {array.shape}, labels are integers [N]")
    return array.astype(np.int64)


def _classes(path: Path, arrays: Arrays, labels: Labels, others: Labels) -> int:
    if "classes" not in arrays:
        return int(max(labels.max(initial=0), others.max(initial=0))) + 1
    classes = arrays["classes"]
    if classes.ndim or not np.issubdtype(classes.dtype, np.integer):
        raise DataError(f"{path}: 'classes' is {classes.dtype} of shape {classes.shape}, not one integer")
    return int(classes)
