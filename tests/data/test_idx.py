"""MNIST and Fashion-MNIST, against files that the tests write by the format's description."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from distreal_edge.data import load_dataset
from distreal_edge.errors import DataError

SYSTEM = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 5, 6), dtype=np.uint8)
LABELS = np.array([0, 9, 3, 3, 1, 2, 8], np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, images: bytes, labels: bytes, *, prefix: str = "train", ending: str = "") -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{prefix}-images-idx3-ubyte{ending}", folder / f"{prefix}-labels-idx1-ubyte{ending}"
    for path, content in zip(paths, (images, labels), strict=True):
        path.write_bytes(gzip.compress(content) if ending == ".gz" else content)
    return paths


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("subfolder", [".", "package/data", "data", "raw", "MNIST/raw"])
def test_idx_files_are_read_gzipped_or_not_where_their_packages_put_them(
    tmp_path: Path, ending: str, subfolder: str
) -> None:
    write(tmp_path / subfolder, idx(IMAGES), idx(LABELS), ending=ending)
    dataset = load_dataset("mnist", root=tmp_path, split="train")
    assert np.array_equal(dataset.images, IMAGES[:, None])
    assert np.array_equal(dataset.labels, LABELS)
    assert (dataset.classes, dataset.name, dataset.writers) == (10, "mnist", None)
    assert dataset.images.flags.writeable


def test_train_and_test_come_from_different_files(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES), idx(LABELS))
    write(tmp_path, idx(IMAGES[:2]), idx(LABELS[:2]), prefix="t10k")
    assert len(load_dataset("fashion-mnist", root=tmp_path, split="train")) == 7
    assert len(load_dataset("fashion-mnist", root=tmp_path, split="test")) == 2


def test_a_file_that_was_unpacked_but_kept_its_gz_ending_is_read(tmp_path: Path) -> None:
    images, _ = write(tmp_path, idx(IMAGES), idx(LABELS), ending=".gz")
    images.write_bytes(idx(IMAGES))
    assert len(load_dataset("mnist", root=tmp_path, split="train")) == 7


def test_empty_files_with_a_header_are_an_empty_dataset(tmp_path: Path) -> None:
    write(tmp_path, idx(IMAGES[:0]), idx(LABELS[:0]))
    assert len(load_dataset("mnist", root=tmp_path, split="train")) == 0


GOOD = idx(IMAGES)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"", "cut short, 0 bytes where an idx header of 16 begins"),
        (GOOD[:3], "cut short, 3 bytes"),
        (GOOD[:9], "cut short inside the header"),
        (GOOD[:-1], r"cut short, 209 of the 210 values that its header \(7, 5, 6\) promises"),
        (GOOD + b"x", "longer than the 210 values"),
        (b"\x89PNG" + GOOD[4:], "not an idx file of unsigned bytes, it begins with 89504e47, not with 000008"),
        (b"\0\0\x0d\x03" + GOOD[4:], "begins with 00000d03"),
        (idx(LABELS), "an idx file of 1 axes, expected 3; images and labels may be swapped"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "the largest accepted is"),
        (idx(IMAGES[:6]), r"holds 6 images but .*train-labels-idx1-ubyte(\.gz)? holds 7 labels"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, damaged: bytes, message: str, ending: str) -> None:
    images, _ = write(tmp_path, damaged, idx(LABELS), ending=ending)
    with pytest.raises(DataError, match=re.escape(str(images)) + ".*" + message):
        load_dataset("mnist", root=tmp_path, split="train")


def test_a_huge_header_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    write(tmp_path, struct.pack(">BBBB3I", 0, 0, 8, 3, 1 << 20, 1 << 10, 1 << 10), idx(LABELS), ending=".gz")
    with pytest.raises(DataError, match="the header claims"):
        load_dataset("mnist", root=tmp_path, split="train")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_gzip_data_is_named(tmp_path: Path, damage: Literal["cut", "flipped"]) -> None:
    images, _ = write(tmp_path, idx(IMAGES), idx(LABELS), ending=".gz")
    packed = bytearray(images.read_bytes())
    if damage == "cut":
        del packed[len(packed) // 2 :]
    else:
        packed[-6] ^= 1  # in the checksum
    images.write_bytes(packed)
    with pytest.raises(DataError, match=re.escape(str(images)) + ": damaged gzip data"):
        load_dataset("mnist", root=tmp_path, split="train")


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[4] = 10
    _, path = write(tmp_path, idx(IMAGES), idx(labels))
    with pytest.raises(DataError, match=re.escape(str(path)) + r": label 10 of image 4 is outside 0\.\.9"):
        load_dataset("mnist", root=tmp_path, split="train")


def test_missing_labels_are_named(tmp_path: Path) -> None:
    _, labels = write(tmp_path, idx(IMAGES), idx(LABELS))
    labels.unlink()
    with pytest.raises(DataError, match="has no labels beside it; put train-labels-idx1-ubyte"):
        load_dataset("mnist", root=tmp_path, split="train")


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="Fashion-MNIST is absent: apt install dataset-fashion-mnist")
@pytest.mark.parametrize(
    ("split", "prefix", "count", "of_each"), [("train", "train", 60000, 6000), ("test", "t10k", 10000, 1000)]
)
def test_fashion_mnist_of_debian_is_whole(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    split: Literal["train", "test"],
    prefix: str,
    count: int,
    of_each: int,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DISTREAL_EDGE_DATA", raising=False)
    dataset = load_dataset("fashion-mnist", split=split)
    assert dataset.images.shape == (count, 1, 28, 28)
    assert np.bincount(dataset.labels).tolist() == [of_each] * 10
    # Independently: unpack, skip the header, sum the bytes.
    with gzip.open(SYSTEM / f"{prefix}-images-idx3-ubyte.gz") as stream:
        pixels = stream.read()[16:]
    assert dataset.images.tobytes() == pixels
    with gzip.open(SYSTEM / f"{prefix}-labels-idx1-ubyte.gz") as stream:
        assert dataset.labels.tolist() == list(stream.read()[8:])
    if split == "train":
        assert np.mean(dataset.images, dtype=np.float64) == pytest.approx(72.94035, abs=1e-5)
