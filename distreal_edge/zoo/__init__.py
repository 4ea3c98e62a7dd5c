"""Networks that are built directly, without PyTorch, with fresh weights from a seed.

Their tensors bear the names that common PyTorch code gives them, so that weights go back and forth.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from distreal_edge.zoo.densenet import densenet40
from distreal_edge.zoo.femnist import femnist_cnn
from distreal_edge.zoo.mobilenet import mobilenet_v2
from distreal_edge.zoo.resnet import resnet8, resnet20
from distreal_edge.zoo.vgg import vgg_small

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from distreal_edge.network import Network

__all__ = ["NETWORKS", "densenet40", "femnist_cnn", "mobilenet_v2", "resnet8", "resnet20", "vgg_small"]

NETWORKS: Mapping[str, Callable[..., Network]] = MappingProxyType(
    {
        "densenet40": densenet40,
        "femnist_cnn": femnist_cnn,
        "mobilenet_v2": mobilenet_v2,
        "resnet20": resnet20,
        "resnet8": resnet8,
        "vgg_small": vgg_small,
    }
)
"""Every network of the zoo by name.

Each is called with keywords only, among them `classes`, `in_channels`, `image_size`, `seed` and `preprocessing`.
"""
