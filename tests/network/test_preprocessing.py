from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.network import Preprocessing, augment, normalise


def _augmented_by_hand(images: np.ndarray, padding: int, flip: bool, seed: int) -> np.ndarray:
    """Read every pixel from where it comes from; black where that is outside."""
    count, _, height, width = images.shape
    rng = np.random.default_rng(seed)
    shifts = rng.integers(0, 2 * padding + 1, size=(count, 2)) if padding else np.zeros((count, 2), dtype=int)
    flips = rng.integers(0, 2, size=count) if flip else np.zeros(count, dtype=int)
    made = np.zeros_like(images)
    for number in range(count):
        for row in range(height):
            for column in range(width):
                source_row = row + shifts[number, 0] - padding
                place = width - 1 - column if flips[number] else column
                source_column = place + shifts[number, 1] - padding
                if 0 <= source_row < height and 0 <= source_column < width:
                    made[number, :, row, column] = images[number, :, source_row, source_column]
    return made


@settings(deadline=None)
@given(
    sides=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.integers(0, 6),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
    floats=st.booleans(),
)
def test_augmentation_moves_every_pixel_where_the_documented_draws_say(
    sides: tuple[int, int], padding: int, flip: bool, seed: int, floats: bool
) -> None:
    images = np.random.default_rng(1).integers(1, 255, size=(4, 2, *sides)).astype(np.float32 if floats else np.uint8)
    before = images.copy()
    made = augment(images, Preprocessing(crop_padding=padding, horizontal_flip=flip), np.random.default_rng(seed))
    assert made.dtype == images.dtype
    assert np.array_equal(made, _augmented_by_hand(images, padding, flip, seed))
    assert np.array_equal(images, before)


def test_augmentation_that_is_off_draws_nothing() -> None:
    rng = np.random.default_rng(3)
    images = np.ones((2, 1, 4, 4), dtype=np.uint8)
    assert np.array_equal(augment(images, Preprocessing(), rng), images)
    assert rng.integers(2**40) == np.random.default_rng(3).integers(2**40)


def test_augmentation_of_no_images_is_no_images() -> None:
    settings = Preprocessing(crop_padding=1, horizontal_flip=True)
    none = np.zeros((0, 1, 4, 4), dtype=np.uint8)
    assert augment(none, settings, np.random.default_rng(0)).shape == (0, 1, 4, 4)


def test_bytes_are_divided_by_255_and_floats_are_taken_as_they_are() -> None:
    preprocessing = Preprocessing(mean=(0.5, 0.25), std=(0.5, 2.0))
    pixels = np.array([0, 51, 255], dtype=np.uint8).reshape(1, 1, 1, 3).repeat(2, axis=1)
    expected = [[(value / 255 - 0.5) / 0.5 for value in (0, 51, 255)], [(v / 255 - 0.25) / 2 for v in (0, 51, 255)]]
    for images in (pixels, (pixels / 255).astype(np.float32)):
        made = normalise(images, preprocessing)
        assert made.dtype == np.float32
        assert made.shape == (1, 2, 1, 3)
        assert made[0, :, 0].tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


def test_normalisation_leaves_its_input_alone() -> None:
    images = np.full((1, 1, 2, 2), 0.5, dtype=np.float32)
    assert normalise(images, Preprocessing(mean=(0.5,))).max() == 0.0
    assert images.min() == 0.5
