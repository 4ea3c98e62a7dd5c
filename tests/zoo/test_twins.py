from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from distreal_edge import zoo
from distreal_edge.engine import Engine
from distreal_edge.network import Network

if TYPE_CHECKING:
    from types import SimpleNamespace

NAMES = tuple(zoo.NETWORKS)
OTHER = {"classes": 7, "in_channels": 2, "image_size": 24}


def test_every_network_of_the_zoo_has_a_twin(twins: SimpleNamespace) -> None:
    assert sorted(twins.names) == sorted(NAMES)


@pytest.mark.parametrize("settings", [{}, OTHER], ids=["usual", "other sizes"])
@pytest.mark.parametrize("name", NAMES)
def test_a_traced_twin_has_the_plan_of_the_zoo(twins: SimpleNamespace, name: str, settings: dict[str, int]) -> None:
    module, input_shape = twins.build(name, **settings)
    traced = Network.from_torch(module, input_shape)
    direct = zoo.NETWORKS[name](**settings)
    assert traced.plan == direct.plan
    assert traced.digest == direct.digest
    assert traced.groups == direct.groups
    assert traced.cost([0.0] * len(traced.groups)) == direct.cost([0.0] * len(direct.groups))


@pytest.mark.parametrize("name", NAMES)
def test_the_zoos_weights_load_strictly_into_the_twin_and_come_back(twins: SimpleNamespace, name: str) -> None:
    module, input_shape = twins.build(name)
    network = zoo.NETWORKS[name](seed=3)
    module.load_state_dict(network.to_state_dict(), strict=True)
    traced = Network.from_torch(module, input_shape)
    assert list(traced.weights) == list(network.weights)
    for tensor, weights in network.weights.items():
        np.testing.assert_array_equal(traced.weights[tensor], weights, err_msg=tensor)


@pytest.mark.parametrize("name", NAMES)
def test_a_traced_twin_predicts_what_the_module_predicts(twins: SimpleNamespace, name: str) -> None:
    module, input_shape = twins.build(name)
    with torch.no_grad():  # statistics that matter
        for tensor, values in module.state_dict().items():
            if tensor.endswith(("running_mean", "running_var")):
                values.uniform_(0.5, 1.5)
    images = np.random.default_rng(1).random((3, *input_shape), dtype=np.float32)
    scores = Engine(Network.from_torch(module, input_shape)).predict(images)
    module.eval()
    expected = module(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
