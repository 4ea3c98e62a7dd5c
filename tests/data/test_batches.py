from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.data import Batches, Dataset
from distreal_edge.errors import DataError


def numbered(count: int) -> Dataset:
    """Make images whose pixels say which they are."""
    images = np.zeros((count, 1, 2, 2), np.uint8)
    images[:, 0, 0, 0] = np.arange(count) % 256
    images[:, 0, 0, 1] = np.arange(count) // 256
    return Dataset(images, np.arange(count, dtype=np.int64) % 7, 7, name="numbered")


def drawn(dataset: Dataset, batch_size: int, batches: int, seed: int = 0) -> list[list[int]]:
    stream = Batches(dataset, batch_size, np.random.default_rng(seed))
    numbers = []
    for images, labels in islice(stream, batches):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        of_batch = images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 0, 1].astype(int)
        assert (labels == of_batch % 7).all(), "an image lost its label"
        numbers.append(of_batch.tolist())
    return numbers


@settings(deadline=None)
@given(count=st.integers(2, 300), batch_size=st.integers(2, 64), epochs=st.integers(1, 4))
def test_each_epoch_visits_each_image_once_in_full_batches(count: int, batch_size: int, epochs: int) -> None:
    full = min(count, batch_size)
    batches = -(-count * epochs // full)  # as many as touch the last image
    numbers = drawn(numbered(count), batch_size, batches)
    assert {len(of_batch) for of_batch in numbers} == {full}
    flat = [number for of_batch in numbers for number in of_batch]
    for epoch in range(epochs):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_over_whole_epochs_every_image_is_seen_equally_often() -> None:
    flat = [number for of_batch in drawn(numbered(100), 32, 25 * 3) for number in of_batch]  # 24 epochs of 100
    assert np.bincount(flat).tolist() == [24] * 100


def test_epochs_are_shuffled_anew() -> None:
    numbers = drawn(numbered(64), 64, 2)
    assert numbers[0] != numbers[1]
    assert numbers[0] != sorted(numbers[0])


def test_the_state_of_the_generator_decides_everything() -> None:
    dataset = numbered(50)
    assert drawn(dataset, 8, 30, seed=4) == drawn(dataset, 8, 30, seed=4)
    assert drawn(dataset, 8, 30, seed=4) != drawn(dataset, 8, 30, seed=5)


def test_a_second_loop_goes_on_where_the_first_stopped() -> None:
    stream = Batches(numbered(6), 2, np.random.default_rng(0))
    seen = [image[0, 0, 0] for _ in range(3) for images, _ in islice(stream, 1) for image in images]
    assert sorted(int(number) for number in seen) == list(range(6))


def test_batches_are_copies() -> None:
    dataset = numbered(4)
    images, labels = next(Batches(dataset, 4, np.random.default_rng(0)))
    images[:] = 255
    labels[:] = 6
    assert dataset.images.max() == 3
    assert dataset.labels.tolist() == [0, 1, 2, 3]


def test_a_batch_of_one_image_is_only_given_to_who_asks_for_it() -> None:
    assert len(drawn(numbered(3), 1, 3)) == 3
    with pytest.raises(DataError, match="a shard of 1 image is too small for batches of 8"):
        Batches(numbered(1), 8, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("count", "batch_size", "message"),
    [(0, 4, "a shard of 0 images"), (0, 1, "a shard of 0 images"), (5, 0, "a batch of 0 images")],
)
def test_what_gives_no_batch_is_refused(count: int, batch_size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Batches(numbered(2).take(range(count)) if count < 2 else numbered(count), batch_size, np.random.default_rng(0))
