from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distreal_edge.data import Dataset
from distreal_edge.errors import DataError


def dataset(**changes: Any) -> Dataset:
    arguments: dict[str, Any] = {
        "images": np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4),
        "labels": np.array([0, 1, 2, 1, 0], np.int64),
        "classes": 3,
        "writers": np.array([7, 7, 8, 8, 9], np.int32),
        "name": "tiny",
    }
    return Dataset(**(arguments | changes))


def test_a_dataset_has_as_many_images_as_its_length() -> None:
    assert len(dataset()) == 5


def test_a_dataset_may_be_empty() -> None:
    empty = dataset().take([])
    assert len(empty) == 0
    assert empty.images.shape == (0, 3, 4, 4)


def test_take_copies_images_labels_and_writers_in_the_order_asked_for() -> None:
    whole = dataset()
    part = whole.take(np.array([4, 2]))
    assert part.labels.tolist() == [0, 2]
    assert part.writers is not None
    assert part.writers.tolist() == [9, 8]
    assert np.array_equal(part.images, np.stack([whole.images[4], whole.images[2]]))
    assert (part.classes, part.name) == (3, "tiny")
    for mine, theirs in ((part.images, whole.images), (part.labels, whole.labels)):
        assert not np.shares_memory(mine, theirs)
        assert mine.base is None  # nothing keeps the whole set alive


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((5, 3, 4, 4), np.float32)},
            r"dataset tiny: images must be uint8 \[N, C, H, W\], not float32",
        ),
        ({"images": np.zeros((5, 4, 4), np.uint8)}, r"not uint8 of shape \(5, 4, 4\)"),
        ({"images": [[1]]}, "images must be a numpy array uint8 .* not list"),
        ({"images": np.zeros((5, 3, 0, 4), np.uint8)}, "hold no pixels"),
        ({"labels": np.zeros(5, np.int32)}, r"labels must be int64 \[N\], not int32"),
        ({"labels": np.zeros(4, np.int64)}, "5 images but 4 labels"),
        ({"labels": np.array([0, 1, 3, 1, 4])}, r"label 3 of image 2 is outside 0\.\.2 \(2 such labels\)"),
        ({"labels": np.array([0, -1, 2, 1, 0])}, "label -1 of image 1 is outside"),
        ({"classes": 0}, "0 classes, at least 1 is needed"),
        ({"writers": np.zeros(5, np.int64)}, r"writers must be int32 \[N\]"),
        ({"writers": np.zeros(6, np.int32)}, "5 images but 6 writers"),
        ({"writers": np.array([0, 0, 0, 0, -1], np.int32)}, "writers are numbered from 0"),
    ],
)
def test_whatever_is_wrong_with_a_dataset_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset(**changes)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([5], r"take\(\) got indices 5\.\.5, but it has 5 images"),
        ([-1, 2], r"take\(\) got indices -1\.\.2"),
        ([0.5], r"list of integers, not float64"),
        (np.ones(5, bool), "list of integers, not bool"),
        (np.zeros((2, 2), np.int64), r"of shape \(2, 2\)"),
    ],
)
def test_take_refuses_what_is_not_a_list_of_its_indices(indices: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset().take(indices)
