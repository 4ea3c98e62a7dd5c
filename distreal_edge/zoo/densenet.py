"""DenseNet-BC for small images (Huang et al., CVPR 2017), named as the usual PyTorch code names its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.network import Network, PlanBuilder

if TYPE_CHECKING:
    from distreal_edge.network import Preprocessing

__all__ = ["densenet40"]

_GROWTH = 12
_LAYERS_PER_BLOCK = (6, 6, 6)  # (40 - 4) / 3 blocks / 2 convolutions a layer


def densenet40(
    *,
    classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """Return DenseNet-BC-40: growth 12, bottlenecks of 48 filters, compression 0.5; 176,122 weights for CIFAR-10.

    Three blocks of six layers; every layer is batch norm, ReLU, 1x1 convolution, batch norm, ReLU, 3x3 convolution.
    """
    builder = PlanBuilder((in_channels, image_size, image_size))
    channels = 2 * _GROWTH
    value = builder.conv2d("features.conv0", builder.input, channels, kernel=3, padding=1, bias=False)
    for block, layers in enumerate(_LAYERS_PER_BLOCK, start=1):
        value = _dense_block(builder, f"features.denseblock{block}", value, layers)
        channels += layers * _GROWTH
        if block < len(_LAYERS_PER_BLOCK):
            channels //= 2
            value = _transition(builder, f"features.transition{block}", value, channels)
    value = builder.relu(builder.batch_norm("features.norm_final", value))
    value = builder.flatten(builder.global_avg_pool(value))
    plan = builder.finish(builder.linear("classifier", value, classes), preprocessing=preprocessing)
    return Network.initialise(plan, seed)


def _dense_block(builder: PlanBuilder, name: str, value: str, layers: int) -> str:
    features = [value]
    for layer in range(1, layers + 1):
        prefix = f"{name}.denselayer{layer}"
        out = builder.concat(*features) if len(features) > 1 else value
        out = builder.relu(builder.batch_norm(f"{prefix}.norm1", out))
        out = builder.conv2d(f"{prefix}.conv1", out, 4 * _GROWTH, kernel=1, bias=False)
        out = builder.relu(builder.batch_norm(f"{prefix}.norm2", out))
        features.append(builder.conv2d(f"{prefix}.conv2", out, _GROWTH, kernel=3, padding=1, bias=False))
    return builder.concat(*features)


def _transition(builder: PlanBuilder, name: str, value: str, channels: int) -> str:
    value = builder.relu(builder.batch_norm(f"{name}.norm", value))
    value = builder.conv2d(f"{name}.conv", value, channels, kernel=1, bias=False)
    return builder.avg_pool(value, kernel=2)
