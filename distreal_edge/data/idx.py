"""The idx format of MNIST and Fashion-MNIST, gzipped or not.

A file is two zero bytes, a type byte (0x08: unsigned byte), the number of axes, one big-endian uint32 length per
axis, and the values. Nothing is allocated before the header has been held against the caps, and values are read
straight into the array that is returned.
"""

from __future__ import annotations

import gzip
import math
import zlib
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.data.dataset import Dataset, Images, Split
from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from io import BufferedIOBase
    from pathlib import Path

GZIP_MAGIC: Final = b"\x1f\x8b"
UNSIGNED_BYTE: Final = 0x08
LARGEST_BYTES: Final = 4 << 30
PREFIX: Final[dict[Split, str]] = {"train": "train", "test": "t10k"}


def read_idx_folder(
    root: Path, split: Split, *, name: str, classes: int, subfolders: tuple[str, ...]
) -> Dataset | None:
    """Read images and labels of one split, or return None when no images lie under `root`.

    Raises DataError when the labels are missing or a file is damaged.
    """
    for folder in (root / subfolder for subfolder in ("", *subfolders)):
        images_path = _find(folder, split, "images", 3)
        if images_path is None:
            continue
        labels_path = _find(folder, split, "labels", 1)
        if labels_path is None:
            raise DataError(
                f"{images_path} has no labels beside it; put {PREFIX[split]}-labels-idx1-ubyte[.gz] into {folder}"
            )
        images = read_idx(images_path, axes=3)
        labels = read_idx(labels_path, axes=1)
        if len(images) != len(labels):
            raise DataError(
                f"{images_path} holds {count_of(len(images), 'image')} but {labels_path} holds"
                f" {count_of(len(labels), 'label')}; get both again from one source"
            )
        if len(labels) and int(labels.max()) >= classes:
            first = int(np.argmax(labels >= classes))
            raise DataError(
                f"{labels_path}: label {labels[first]} of image {first} is outside 0..{classes - 1};"
                f" this is not {name}, or the file is damaged"
            )
        return Dataset(images[:, np.newaxis], labels.astype(np.int64), classes, name=name)
    return None


def read_idx(path: Path, *, axes: int) -> Images:
    """Read an idx file of unsigned bytes with that many axes.

    Raises DataError when it is not such a file, is cut short, is too long or claims more than 4 GiB.
    """
    with path.open("rb") as raw:
        # Contents, not the name: browsers unpack a download and leave .gz at its end.
        if raw.peek(2)[:2] != GZIP_MAGIC:
            return _read(raw, path, axes)
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read(stream, path, axes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise DataError(f"{path}: damaged gzip data ({problem}); get the file again") from problem


def _read(stream: BufferedIOBase, path: Path, axes: int) -> Images:
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(
            f"{path}: cut short, {count_of(len(magic), 'byte')} where an idx header of {4 + 4 * axes} begins"
        )
    if magic[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise DataError(f"{path}: not an idx file of unsigned bytes, it begins with {magic.hex()}, not with 000008")
    if magic[3] != axes:
        raise DataError(f"{path}: an idx file of {magic[3]} axes, expected {axes}; images and labels may be swapped")
    lengths_bytes = stream.read(4 * axes)
    if len(lengths_bytes) < 4 * axes:
        raise DataError(
            f"{path}: cut short inside the header, which names the lengths of {count_of(axes, 'axis', 'axes')}"
        )
    shape = tuple(int(length) for length in np.frombuffer(lengths_bytes, ">u4"))
    expected = math.prod(shape)
    if expected > LARGEST_BYTES:
        raise DataError(f"{path}: the header claims {shape}, {expected} bytes; the largest accepted is {LARGEST_BYTES}")
    values = np.empty(shape, np.uint8)
    view = values.reshape(-1).data
    filled = 0
    while filled < expected:
        count = stream.readinto(view[filled:])
        if not count:
            raise DataError(
                f"{path}: cut short, {filled} of the {count_of(expected, 'value')} that its header {shape} promises"
            )
        filled += count
    if stream.read(1):
        raise DataError(f"{path}: longer than the {count_of(expected, 'value')} that its header {shape} promises")
    return values


def _find(folder: Path, split: Split, what: str, axes: int) -> Path | None:
    stem = f"{PREFIX[split]}-{what}"
    for spelling in (f"{stem}-idx{axes}-ubyte", f"{stem}.idx{axes}-ubyte"):
        for ending in ("", ".gz"):
            path = folder / (spelling + ending)
            if path.is_file():
                return path
    return None
