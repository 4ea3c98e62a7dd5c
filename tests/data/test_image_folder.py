from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from distreal_edge.data import load_dataset
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def save(path: Path, colour: tuple[int, int, int] | int = 7, size: tuple[int, int] = (5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


def test_pictures_are_labelled_by_their_folders_in_sorted_order(tmp_path: Path) -> None:
    save(tmp_path / "train/dog/1.png", (10, 20, 30))
    save(tmp_path / "train/cat/2.png", (40, 50, 60))
    save(tmp_path / "train/cat/1.PNG", (70, 80, 90))
    (tmp_path / "train/cat/notes.txt").write_text("no picture")
    save(tmp_path / "test/dog/x.jpg", (0, 0, 0))
    train = load_dataset("folder", root=tmp_path, split="train")
    assert train.labels.tolist() == [0, 0, 1]
    assert train.images.shape == (3, 3, 4, 5)  # N, C, H, W
    assert train.images[:, :, 0, 0].tolist() == [[70, 80, 90], [40, 50, 60], [10, 20, 30]]
    assert (train.classes, train.name) == (2, tmp_path.name)
    test = load_dataset("folder", root=tmp_path, split="test")
    assert test.labels.tolist() == [1], "a class without test pictures must not shift the others"
    assert test.classes == 2


def test_rows_and_columns_stay_where_they_are(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    (tmp_path / "train/a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "train/a/1.png")
    images = load_dataset("folder", root=tmp_path, split="train").images
    assert images[0, 2, 3, 1] == pixels[3, 1, 2]


def test_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png", 200)
    save(tmp_path / "train/b/1.png", 100)
    dataset = load_dataset("folder", root=tmp_path, split="train")
    assert dataset.images.shape == (2, 1, 4, 5)
    assert dataset.images[:, 0, 0, 0].tolist() == [200, 100]


def test_a_list_of_classes_keeps_their_numbers_on_a_device_that_lacks_some(tmp_path: Path) -> None:
    save(tmp_path / "train/dog/1.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\nfish\n")
    dataset = load_dataset("folder", root=tmp_path, split="train")
    assert dataset.labels.tolist() == [1]
    assert dataset.classes == 3


def test_the_first_picture_that_differs_is_named(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png")
    save(tmp_path / "train/a/2.png", size=(6, 4))
    save(tmp_path / "train/a/3.png", size=(9, 9))
    message = f"{tmp_path}/train/a/2.png: 6x4 with 1 channel, but {tmp_path}/train/a/1.png is 5x4 with 1 channel;"
    with pytest.raises(DataError, match=re.escape(message)):
        load_dataset("folder", root=tmp_path, split="train")


def test_a_colour_picture_among_grey_ones_is_named(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png")
    save(tmp_path / "train/a/2.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"2\.png: 5x4 with 3 channels, but .*1\.png is 5x4 with 1 channel"):
        load_dataset("folder", root=tmp_path, split="train")


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png")
    (tmp_path / "train/a/2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a/2\.png: not a picture that pillow can read"):
        load_dataset("folder", root=tmp_path, split="train")


def test_a_picture_of_16_bits_is_refused_instead_of_clipped(tmp_path: Path) -> None:
    (tmp_path / "train/a").mkdir(parents=True)
    Image.fromarray(np.full((4, 5), 4000, np.uint16)).save(tmp_path / "train/a/1.png")
    with pytest.raises(DataError, match=r"1\.png: has more than 8 bits a channel"):
        load_dataset("folder", root=tmp_path, split="train")


def test_a_test_class_that_is_not_trained_is_named(tmp_path: Path) -> None:
    save(tmp_path / "train/cat/1.png")
    save(tmp_path / "test/dog/1.png")
    with pytest.raises(DataError, match=r"test/dog: not a class; the classes are cat\."):
        load_dataset("folder", root=tmp_path, split="test")


def test_folders_without_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=re.escape("holds no folder; pictures go to")):
        load_dataset("folder", root=tmp_path, split="train")
    (tmp_path / "train/a").mkdir()
    with pytest.raises(DataError, match="no png or jpg in any folder of it"):
        load_dataset("folder", root=tmp_path, split="train")


def test_a_bad_list_of_classes_is_named(tmp_path: Path) -> None:
    save(tmp_path / "train/cat/1.png")
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(DataError, match=r"classes\.txt: a class is listed twice"):
        load_dataset("folder", root=tmp_path, split="train")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classes\.txt: not UTF-8 text"):
        load_dataset("folder", root=tmp_path, split="train")
