"""MobileNetV2 for small images (Sandler et al., CVPR 2018), named as torchvision names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.network import Network, PlanBuilder

if TYPE_CHECKING:
    from distreal_edge.network import Preprocessing

__all__ = ["mobilenet_v2"]

# Table 2 of the paper: expansion, channels, blocks, stride of the first block. The stride of the second row is 1
# instead of 2, and so is the first convolution's, because the images are small.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    *,
    classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """Return MobileNetV2 with a total stride of 8; 2,236,682 weights for CIFAR-10 at `width` 1.

    `width` multiplies the channels of every layer (the last one's only when above 1), rounded to multiples of 8 as in
    the paper's code. The classifier's element-wise dropout is left out: filters are dropped instead.
    """
    builder = PlanBuilder((in_channels, image_size, image_size))
    channels = _round_to_eight(32 * width)
    value = _convolution(builder, "features.0", builder.input, channels, kernel=3)
    position = 1
    for expansion, base, blocks, stage_stride in _STAGES:
        out_channels = _round_to_eight(base * width)
        for block in range(blocks):
            stride = stage_stride if block == 0 else 1
            name = f"features.{position}.conv"
            value = _inverted_residual(builder, name, value, (channels, expansion, out_channels, stride))
            channels = out_channels
            position += 1
    value = _convolution(builder, f"features.{position}", value, _round_to_eight(1280 * max(1.0, width)), kernel=1)
    value = builder.flatten(builder.global_avg_pool(value))
    plan = builder.finish(builder.linear("classifier.1", value, classes), preprocessing=preprocessing)
    return Network.initialise(plan, seed)


def _inverted_residual(builder: PlanBuilder, name: str, value: str, sizes: tuple[int, int, int, int]) -> str:
    in_channels, expansion, out_channels, stride = sizes
    hidden = in_channels * expansion
    out = value
    layer = 0
    if expansion > 1:
        out = _convolution(builder, f"{name}.0", out, hidden, kernel=1)
        layer = 1
    out = _convolution(builder, f"{name}.{layer}", out, hidden, kernel=3, stride=stride, groups=hidden)
    out = builder.conv2d(f"{name}.{layer + 1}", out, out_channels, kernel=1, bias=False)
    out = builder.batch_norm(f"{name}.{layer + 2}", out)
    return builder.add(value, out) if stride == 1 and in_channels == out_channels else out


def _convolution(
    builder: PlanBuilder, name: str, value: str, channels: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> str:
    value = builder.conv2d(
        f"{name}.0", value, channels, kernel=kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return builder.relu6(builder.batch_norm(f"{name}.1", value))


def _round_to_eight(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
