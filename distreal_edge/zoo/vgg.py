"""A small VGG (Simonyan and Zisserman, ICLR 2015) with batch norm, named as torchvision names its VGGs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.network import Network, PlanBuilder

if TYPE_CHECKING:
    from distreal_edge.network import Preprocessing

__all__ = ["vgg_small"]

_LAYERS: tuple[int | None, ...] = (32, 32, None, 64, 64, None, 128, 128, None)
"""Filters of each convolution; None is a max-pool."""


def vgg_small(
    *,
    classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """Return six 3x3 convolutions of 32, 32, 64, 64, 128 and 128 filters in three stages, and a linear classifier.

    The classifier reads the flattened maps: every filter of the last convolution stands behind as many columns as its
    map has pixels (16 for images of 32x32, 9 for 28x28).
    """
    builder = PlanBuilder((in_channels, image_size, image_size))
    value = builder.input
    position = 0
    for filters in _LAYERS:
        if filters is None:
            value = builder.max_pool(value, kernel=2)
            position += 1
            continue
        value = builder.conv2d(f"features.{position}", value, filters, kernel=3, padding=1, bias=False)
        value = builder.relu(builder.batch_norm(f"features.{position + 1}", value))
        position += 3
    value = builder.linear("classifier", builder.flatten(value), classes)
    return Network.initialise(builder.finish(value, preprocessing=preprocessing), seed)
