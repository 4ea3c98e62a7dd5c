"""Residual networks for small images (He et al., CVPR 2016, section 4.2), named as torchvision names its ResNets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.network import Network, PlanBuilder

if TYPE_CHECKING:
    from distreal_edge.network import Preprocessing

__all__ = ["resnet8", "resnet20"]

_WIDTHS = (16, 32, 64)


def resnet20(
    *,
    classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """Return ResNet-20: three stages of 16, 32 and 64 filters with three blocks each; 272,474 weights for CIFAR-10.

    Where a stage changes width, the shortcut is a 1x1 convolution with batch norm (option B of the paper; its option A,
    strided and padded with zeros, has 2,752 weights less).
    """
    return _resnet(3, classes, (in_channels, image_size, image_size), seed, preprocessing)


def resnet8(
    *,
    classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """Return ResNet-8: as `resnet20`, with one block a stage; 78,042 weights for CIFAR-10."""
    return _resnet(1, classes, (in_channels, image_size, image_size), seed, preprocessing)


def _resnet(
    blocks: int, classes: int, input_shape: tuple[int, int, int], seed: int, preprocessing: Preprocessing | None
) -> Network:
    builder = PlanBuilder(input_shape)
    value = builder.conv2d("conv1", builder.input, _WIDTHS[0], kernel=3, padding=1, bias=False)
    value = builder.relu(builder.batch_norm("bn1", value))
    for stage, width in enumerate(_WIDTHS):
        for block in range(blocks):
            narrows = stage > 0 and block == 0
            value = _basic_block(builder, f"layer{stage + 1}.{block}", value, width, narrows=narrows)
    value = builder.flatten(builder.global_avg_pool(value))
    plan = builder.finish(builder.linear("fc", value, classes), preprocessing=preprocessing)
    return Network.initialise(plan, seed)


def _basic_block(builder: PlanBuilder, name: str, value: str, width: int, *, narrows: bool) -> str:
    stride = 2 if narrows else 1
    out = builder.conv2d(f"{name}.conv1", value, width, kernel=3, stride=stride, padding=1, bias=False)
    out = builder.relu(builder.batch_norm(f"{name}.bn1", out))
    out = builder.conv2d(f"{name}.conv2", out, width, kernel=3, padding=1, bias=False)
    out = builder.batch_norm(f"{name}.bn2", out)
    if narrows:
        value = builder.conv2d(f"{name}.downsample.0", value, width, kernel=1, stride=stride, bias=False)
        value = builder.batch_norm(f"{name}.downsample.1", value)
    return builder.relu(builder.add(out, value))
