from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.data import load_dataset, npz
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(4)
NCHW = RNG.integers(0, 256, (6, 3, 8, 9), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def keras(**changes: Any) -> dict[str, Any]:
    arrays = {
        "x_train": NCHW.transpose(0, 2, 3, 1),
        "y_train": LABELS[:, None].astype(np.uint8),
        "x_test": NCHW[:2].transpose(0, 2, 3, 1),
        "y_test": np.array([[0], [4]], np.uint8),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_of_keras_is_read(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "set.npz"
    save(path, **keras())
    train = load_dataset("npz", root=path, split="train")
    assert np.array_equal(train.images, NCHW)
    assert train.images.flags.c_contiguous
    assert train.labels.tolist() == LABELS.tolist()
    assert train.name == "set"
    test = load_dataset("npz", root=path, split="test")
    assert np.array_equal(test.images, NCHW[:2])
    assert train.classes == test.classes == 5, "both splits count, or a label of one would be unknown to the other"


@pytest.mark.parametrize(
    ("stored", "layout", "expected"),
    [
        (NCHW, None, NCHW),
        (NCHW.transpose(0, 2, 3, 1), None, NCHW),
        (NCHW[:, 0], None, NCHW[:, :1]),
        (NCHW[:, :1], None, NCHW[:, :1]),
        (NCHW[:, :, :3, :4], "NCHW", NCHW[:, :, :3, :4]),
        (NCHW[:, :, :3, :4], "NHWC", NCHW[:, :, :3, :4].transpose(0, 3, 1, 2)),
        (np.tile(NCHW, (1, 4, 1, 1)), "NCHW", np.tile(NCHW, (1, 4, 1, 1))),
    ],
)
def test_axes_are_told_apart_or_taken_as_the_file_says(
    tmp_path: Path, stored: Any, layout: str | None, expected: Any
) -> None:
    path = tmp_path / "set.npz"
    more: dict[str, Any] = {} if layout is None else {"layout": layout}
    np.savez(path, images=stored, labels=LABELS, **more)
    assert np.array_equal(load_dataset("npz", root=path, split="train").images, expected)


def test_a_folder_holds_train_and_test_with_common_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=NCHW, labels=LABELS, writers=np.arange(6))
    np.savez(tmp_path / "test.npz", images=NCHW[:1], labels=np.array([8]))
    train = load_dataset("npz", root=tmp_path, split="train")
    assert train.writers is not None
    assert train.writers.tolist() == list(range(6))
    test = load_dataset("npz", root=tmp_path, split="test")
    assert (len(test), test.classes, train.classes, test.name) == (1, 9, 9, tmp_path.name)


def test_classes_are_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=NCHW, labels=LABELS, classes=40)
    assert load_dataset("npz", root=path, split="train").classes == 40


def test_one_unnamed_split_is_never_taken_for_test_images(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=NCHW, labels=LABELS)
    with pytest.raises(DataError, match="holds one split under 'images', which is taken as the training one"):
        load_dataset("npz", root=path, split="test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (keras(x_train=NCHW.astype(np.float32) / 255), "'x_train' is float32, not uint8; save floats of 0..1 as"),
        (keras(x_train=NCHW[0, 0]), r"'x_train' has shape \(8, 9\), not \[N, H, W\]"),
        (keras(x_train=NCHW[:, :, :3, :4]), r"could be \[N, C, H, W\] or \[N, H, W, C\]; save a string 'layout'"),
        (keras(x_train=np.tile(NCHW, (1, 4, 1, 1))), "save a string 'layout'"),
        (keras(layout="CHWN"), "'layout' is CHWN, not NCHW or NHWC"),
        (keras(y_train=None), "no array 'y_train' in it"),
        (keras(x_train=None), "no array 'x_train' in it"),
        (keras(y_train=LABELS / 1.5), r"'y_train' is float64 of shape \(6,\), labels are integers \[N\]"),
        (keras(y_train=np.eye(6, dtype=int)), r"'y_train' is int64 of shape \(6, 6\)"),
        (keras(y_test=np.array(["cat"])), "labels of the other split"),
        (keras(classes=2.5), "'classes' is float64"),
        (keras(classes=2), r"label 2 of image 2 is outside 0\.\.1"),
        (keras(y_train=LABELS[:5]), "6 images but 5 labels"),
        (keras(y_train=np.array([0, 1, -2, 0, 0, 0])), "label -2 of image 2"),
        (keras(y_train=np.array([None] * 6)), "objects are never unpickled"),
    ],
)
def test_a_file_with_the_wrong_arrays_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="set.*" + message):
        load_dataset("npz", root=path, split="train")


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=np.zeros((10, 30, 30), np.uint8), labels=np.zeros(10, int))
    assert path.stat().st_size < 1000
    monkeypatch.setattr(npz, "LARGEST_BYTES", 1000)
    with pytest.raises(DataError, match=r"set\.npz: \d+ bytes unpacked, the largest accepted is 1000"):
        load_dataset("npz", root=path, split="train")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **keras())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[400] ^= 255  # among the pixels: the archive's checksum notices
    for content, message in (
        (whole[:-100], "not an npz file, or cut short"),
        (b"", "not an npz file"),
        (bytes(flipped), "damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(str(path)) + ": " + message):
            load_dataset("npz", root=path, split="train")
