"""Networks of the zoo train beside the reference, on the same batches and the same random subsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distreal_edge import Engine, zoo

# Rounding differences double every few steps, in PyTorch's float32 against its float64 as here: so means are compared.
STEPS, WINDOW, BATCH = 200, 100, 32
# As small as they get: what is compared is arithmetic. benchmarks/agreement.py does the same at full size.
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20": {"image_size": 16},
    "densenet40": {"image_size": 8, "in_channels": 1},
    "vgg_small": {"image_size": 8},
    "mobilenet_v2": {"image_size": 16, "width": 0.1},
    "femnist_cnn": {"image_size": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_of_200_steps_over_random_subsets_are_the_references(name: str) -> None:
    network = zoo.NETWORKS[name](classes=10, seed=1, **NETWORKS[name])
    engines = [Engine(network, backend, seed=7) for backend in ("native", "reference")]
    rng = np.random.default_rng(0)
    # Ten kinds of images in noise: something to learn, so that the losses mean something.
    kinds = rng.random((10, *network.plan.input_shape), dtype=np.float32)
    losses: list[list[float]] = [[], []]
    for _ in range(STEPS):
        labels = rng.integers(0, 10, BATCH)
        noise = rng.random((BATCH, *network.plan.input_shape), dtype=np.float32)
        images = np.float32(0.5) * (kinds[labels] + noise)
        vector = rng.uniform(0.0, 0.8, len(network.groups))
        subset = network.draw(vector.tolist(), rng, "random")
        for engine, seen in zip(engines, losses, strict=True):
            seen.append(engine.step(images, labels, subset, lr=0.003, momentum=0.9, weight_decay=5e-4))
    ours, theirs = (np.reshape(seen, (-1, WINDOW)).mean(axis=1) for seen in losses)
    np.testing.assert_allclose(ours, theirs, rtol=0.01)
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    assert not np.array_equal(*losses)
