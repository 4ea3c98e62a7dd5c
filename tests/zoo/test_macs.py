from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge import zoo
from distreal_edge.dropout import filter_counts, uniform_vector

if TYPE_CHECKING:
    from types import SimpleNamespace

    from distreal_edge.dropout import Vector
    from distreal_edge.network import Network


def random_vector(network: Network, seed: int) -> Vector:
    return tuple(np.random.default_rng(seed).uniform(0.0, 0.95, len(network.groups)).tolist())


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_macs_of_the_full_network_are_those_that_pytorch_does(twins: SimpleNamespace, name: str) -> None:
    network = zoo.NETWORKS[name]()
    assert network.cost(uniform_vector(0.0, len(network.groups))).macs == twins.macs(*twins.build(name))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_macs_of_a_vector_are_those_of_the_smaller_network_built_by_hand(
    twins: SimpleNamespace, name: str, seed: int
) -> None:
    network = zoo.NETWORKS[name]()
    vector = random_vector(network, seed)
    counts = filter_counts(vector, network.plan.sizes)
    kept = {group.name: count for group, count in zip(network.groups, counts, strict=True)}
    asked = set()

    def width(group: str, _filters: int) -> int:
        asked.add(group)
        return kept[group]

    smaller = twins.build(name, width=width)
    assert asked == set(kept)
    assert network.cost(vector).macs == twins.macs(*smaller)


@pytest.mark.parametrize("name", ["resnet20", "densenet40", "mobilenet_v2"])
def test_the_macs_depend_on_how_many_filters_survive_not_on_which(name: str) -> None:
    network = zoo.NETWORKS[name]()
    vector = random_vector(network, 7)
    subset = network.draw(vector, np.random.default_rng(0), policy="random")
    assert network.cost(subset).macs == network.cost(vector).macs
