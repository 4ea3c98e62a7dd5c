"""The network that the demo trains."""

from __future__ import annotations

from distreal_edge.network import Network, PlanBuilder, Preprocessing

__all__ = ["demo_network"]


def demo_network(seed: int) -> Network:
    """Return a network for 28x28 grey images in ten classes; 188,906 weights, in a file of 0.8 MB.

    Three convolutions of 32, 64 and 128 filters, each with batch norm, and a linear layer. It learns Fashion-MNIST in
    minutes, and has few operations with many filters each: so its time follows its multiply-accumulates, also where
    every operation costs some overhead.
    """
    builder = PlanBuilder((1, 28, 28))
    value = builder.input
    for number, (filters, kernel, pooled) in enumerate(((32, 5, True), (64, 5, True), (128, 3, False)), start=1):
        value = builder.conv2d(f"conv{number}", value, filters, kernel=kernel, padding=kernel // 2, bias=False)
        value = builder.relu(builder.batch_norm(f"bn{number}", value))
        if pooled:
            value = builder.max_pool(value, kernel=2)
    scores = builder.linear("classifier", builder.flatten(value), 10)
    # The mean and standard deviation of Fashion-MNIST's training images.
    plan = builder.finish(scores, preprocessing=Preprocessing(mean=(0.2860,), std=(0.3530,)))
    return Network.initialise(plan, seed)
