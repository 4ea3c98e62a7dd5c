"""What happens to images before the first operation: part of the network's file, the same on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeVar

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Augmentation", "Preprocessing", "augment", "draw_augmentation", "normalise"]

_Finite = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
_Pixel = TypeVar("_Pixel", bound=np.generic)
_Scale = Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Normalisation by channel, and augmentation in training.

    `mean` and `std` are of images in 0..1, one number per channel, or empty for none. In training an image is padded
    by `crop_padding` black pixels on every side and cropped back at random, and flipped left to right every other
    time when `horizontal_flip` is on.
    """

    mean: Annotated[tuple[_Finite, ...], msgspec.Meta(max_length=4096)] = ()
    std: Annotated[tuple[_Scale, ...], msgspec.Meta(max_length=4096)] = ()
    crop_padding: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    horizontal_flip: bool = False


class Augmentation(NamedTuple):
    """What happens to each image of a mini-batch: where it is cropped, and whether it is mirrored; None: neither.

    `corners` is `[N, 2]`, (top, left) of the crop in the padded image, `flips` is bool `[N]`.
    """

    corners: NDArray[np.int64] | None
    flips: NDArray[np.bool_] | None


def draw_augmentation(count: int, preprocessing: Preprocessing, rng: np.random.Generator) -> Augmentation:
    """Draw how `count` images are shifted and flipped.

    Draws from `rng`, in this order, so that another engine can do exactly the same: with padding, `integers` of shape
    `[N, 2]` in 0..2*padding (top, left); with flips, `integers` of shape `[N]` in 0..1.
    """
    corners = flips = None
    if preprocessing.crop_padding:
        corners = rng.integers(0, 2 * preprocessing.crop_padding, size=(count, 2), endpoint=True)
    if preprocessing.horizontal_flip:
        flips = rng.integers(0, 1, size=count, endpoint=True).astype(np.bool_)
    return Augmentation(corners, flips)


def augment(images: NDArray[_Pixel], preprocessing: Preprocessing, rng: np.random.Generator) -> NDArray[_Pixel]:
    """Return copies of images `[N, C, H, W]` of any dtype, shifted and flipped by `draw_augmentation`."""
    count, _, height, width = images.shape
    corners, flips = draw_augmentation(count, preprocessing, rng)
    if corners is not None:
        margin = preprocessing.crop_padding
        padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
        images = np.empty_like(images)
        for cropped, image, (top, left) in zip(images, padded, corners, strict=True):
            cropped[...] = image[:, top : top + height, left : left + width]
    if flips is not None:
        images = np.where(flips.reshape(-1, 1, 1, 1), images[..., ::-1], images)
    return images


def normalise(images: NDArray[np.generic], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return images as float32 `[N, C, H, W]`: uint8 ones divided by 255, then `(x - mean) / std` by channel."""
    scaled = images.astype(np.float32)
    if images.dtype == np.uint8:
        scaled /= np.float32(255.0)
    if preprocessing.mean:
        scaled -= np.asarray(preprocessing.mean, dtype=np.float32)[:, None, None]
    if preprocessing.std:
        scaled /= np.asarray(preprocessing.std, dtype=np.float32)[:, None, None]
    return scaled
