"""With rate 0 everywhere the engine is PyTorch: the same losses for hundreds of steps, the same weights after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional

from distreal_edge import Engine, Network, Subset, zoo
from distreal_edge.network.operations import Dropout

if TYPE_CHECKING:
    from collections.abc import Callable

# Images as small as the networks allow: what is compared is arithmetic, not learning.
SMALL = {
    "densenet40": {"in_channels": 1, "image_size": 8},
    "femnist_cnn": {"image_size": 8},
    "mobilenet_v2": {"image_size": 16, "width": 0.1},
    "resnet20": {"image_size": 8},
    "resnet8": {"image_size": 8},
    "vgg_small": {"image_size": 8},
}
LR, MOMENTUM, WEIGHT_DECAY = 0.02, 0.9, 5e-4


def test_every_network_of_the_zoo_is_compared() -> None:
    assert set(SMALL) == set(zoo.NETWORKS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "mobilenet_v2" else name for name in SMALL]
)
def test_losses_of_200_steps_are_pytorchs(
    name: str, plan_module: Callable[..., Any], executor64: Callable[..., Any], draw_batch: Callable[..., Any]
) -> None:
    network = zoo.NETWORKS[name](seed=1, **SMALL[name])
    executor = executor64(network)
    module = plan_module(network).train()
    optimiser = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    everything = Subset.full(network.plan.sizes)
    rng = np.random.default_rng(0)
    batches = [draw_batch(network.plan, 4, seed) for seed in range(8)]
    ours, theirs = [], []
    for step in range(200):
        images, labels = batches[step % len(batches)]
        ours.append(executor.step(images, labels, everything, LR, MOMENTUM, WEIGHT_DECAY, rng))
        theirs.append(_plain_step(module, optimiser, images, labels, torch.float64))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < ours[0]  # it trains, so that the comparison means something
    assert len(set(ours)) == len(ours)


@pytest.mark.parametrize("name", ["resnet8", "femnist_cnn", "vgg_small"])
def test_the_engine_itself_follows_pytorch_in_float32(
    name: str, backend: str, plan_module: Callable[..., Any], draw_batch: Callable[..., Any]
) -> None:
    network = zoo.NETWORKS[name](seed=2, **SMALL[name])
    engine = Engine(network, backend)
    module = plan_module(network, torch.float32).train()
    # Slow enough that no activation is carried over its corner by rounding alone: from there on two right engines part.
    lr = LR / 4
    optimiser = torch.optim.SGD(module.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    everything = Subset.full(network.plan.sizes)
    for seed in range(20):
        images, labels = draw_batch(network.plan, 8, seed)
        loss = engine.step(images, labels, everything, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        assert loss == pytest.approx(_plain_step(module, optimiser, images, labels, torch.float32), rel=1e-4)
    for tensor in network.plan.parameters:
        expected = module.tensor(tensor).detach().numpy()
        np.testing.assert_allclose(engine.weights[tensor], expected, rtol=1e-3, atol=1e-5)


def test_a_module_with_every_operation_trains_as_in_pytorch(
    every_operation: Any, shuffled: Callable[..., Network], plan_module: Any, executor64: Any, draw_batch: Any
) -> None:
    # Element-wise dropout draws from a generator of its own kind in PyTorch: here it drops nothing.
    plan = _without_element_dropout(every_operation)
    network = shuffled(plan, 3)
    executor, module = executor64(network), plan_module(network).train()
    optimiser = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for seed in range(10):
        images, labels = draw_batch(plan, 5, seed)
        everything = Subset.full(plan.sizes)
        loss = executor.step(images, labels, everything, LR, MOMENTUM, WEIGHT_DECAY, np.random.default_rng(0))
        assert loss == pytest.approx(_plain_step(module, optimiser, images, labels, torch.float64), rel=1e-9)
    for name in plan.parameters:
        torch.testing.assert_close(executor.weights[name], module.tensor(name).detach(), rtol=1e-8, atol=1e-10)
        momentum = optimiser.state[module.tensor(name)]["momentum_buffer"]
        torch.testing.assert_close(executor.momentum[name], momentum, rtol=1e-7, atol=1e-10)


def _plain_step(module: Any, optimiser: Any, images: Any, labels: Any, dtype: torch.dtype) -> float:
    optimiser.zero_grad()
    loss = functional.cross_entropy(module(torch.from_numpy(images).to(dtype)), torch.from_numpy(labels))
    loss.backward()
    optimiser.step()
    return loss.item()


def _without_element_dropout(plan: Any) -> Any:
    operations = tuple(
        msgspec.structs.replace(operation, p=0.0) if isinstance(operation, Dropout) else operation
        for operation in plan.operations
    )
    return type(plan)(plan.input_shape, operations, plan.rescale, plan.preprocessing)
