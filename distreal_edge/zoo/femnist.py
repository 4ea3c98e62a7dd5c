"""The convolutional network of the first federated-learning experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.network import Network, PlanBuilder

if TYPE_CHECKING:
    from distreal_edge.network import Preprocessing

__all__ = ["femnist_cnn"]


def femnist_cnn(
    *,
    classes: int = 62,
    in_channels: int = 1,
    image_size: int = 28,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Network:
    """Return the CNN of McMahan et al. (AISTATS 2017); 1,690,046 weights for FEMNIST's 62 classes.

    Two 5x5 convolutions of 32 and 64 filters, each with bias, ReLU and 2x2 max-pool, then a linear layer of 512
    features and the classifier. It has no batch norm, so that it rescales under dropout.
    """
    builder = PlanBuilder((in_channels, image_size, image_size))
    value = builder.conv2d("conv1", builder.input, 32, kernel=5, padding=2)
    value = builder.max_pool(builder.relu(value), kernel=2)
    value = builder.conv2d("conv2", value, 64, kernel=5, padding=2)
    value = builder.max_pool(builder.relu(value), kernel=2)
    value = builder.relu(builder.linear("fc1", builder.flatten(value), 512))
    plan = builder.finish(builder.linear("fc2", value, classes), preprocessing=preprocessing)
    return Network.initialise(plan, seed)
