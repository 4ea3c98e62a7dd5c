from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.engine import Engine
from distreal_edge.errors import NetworkError
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.zoo import NETWORKS

if TYPE_CHECKING:
    from numpy.typing import NDArray


def images_and_labels(network: Network) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return rng.random((8, *network.plan.input_shape), dtype=np.float32), rng.integers(0, network.plan.classes, 8)


def vector_of(network: Network) -> list[float]:
    """Return a different rate for every group."""
    return [0.2 + 0.5 * (number % 4) / 3 for number in range(len(network.groups))]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_narrowed_network_has_the_loss_that_pytorch_finds_over_the_subset(name: str) -> None:
    network = NETWORKS[name](seed=3)
    vector = vector_of(network)
    images, labels = images_and_labels(network)
    subset = network.draw(vector, np.random.default_rng(0))
    expected = Engine(network, "reference").step(images, labels, subset, lr=1e-9)
    narrow = network.narrowed(vector)
    whole = narrow.draw([0.0] * len(narrow.groups), np.random.default_rng(0))
    assert Engine(narrow).step(images, labels, whole, lr=1e-9) == pytest.approx(expected, rel=2e-4)
    assert narrow.cost([0.0] * len(narrow.groups)).macs == network.cost(vector).macs


def test_a_narrowed_network_learns_as_the_subset_does() -> None:
    network = NETWORKS["resnet8"](seed=1, image_size=16)
    vector = vector_of(network)
    images, labels = images_and_labels(network)
    full, narrow = Engine(network), network.narrowed(vector)
    cut = Engine(narrow)
    for _ in range(3):
        full.step(images, labels, network.draw(vector, np.random.default_rng(0)), lr=0.05)
        cut.step(images, labels, narrow.draw([0.0] * len(narrow.groups), np.random.default_rng(0)), lr=0.05)
    expected = Network(network.plan, dict(full.weights)).narrowed(vector)
    for name in narrow.plan.parameters:
        np.testing.assert_allclose(cut.weights[name], expected.weights[name], rtol=1e-3, atol=1e-5)


def test_a_grouped_convolution_cannot_be_narrowed_and_is_named() -> None:
    builder = PlanBuilder((4, 8, 8))
    value = builder.conv2d("mixed", builder.conv2d("first", builder.input, 4, kernel=3), 8, kernel=3, groups=2)
    value = builder.flatten(builder.global_avg_pool(value))
    network = Network.initialise(builder.finish(builder.linear("classes", value, 3)))
    with pytest.raises(NetworkError, match="'mixed' has 2 groups"):
        network.narrowed([0.5] * len(network.groups))
