from __future__ import annotations

import numpy as np
import pytest
import torch

from distreal_edge.network import Network, PlanBuilder


def _network(seed: int) -> Network:
    builder = PlanBuilder((16, 8, 8))
    value = builder.conv2d("conv", builder.input, 64, kernel=3)
    value = builder.batch_norm("bn", value)
    value = builder.conv2d("grouped", value, 64, kernel=(3, 1), groups=4)
    value = builder.conv2d("depthwise", value, 64, kernel=3, groups=64, bias=False)
    return Network.initialise(builder.finish(builder.linear("fc", builder.flatten(value), 64)), seed)


MODULES = {
    "conv": lambda: torch.nn.Conv2d(16, 64, 3),
    "grouped": lambda: torch.nn.Conv2d(64, 64, (3, 1), groups=4),
    "depthwise": lambda: torch.nn.Conv2d(64, 64, 3, groups=64, bias=False),
    "fc": lambda: torch.nn.Linear(512, 64),
    "bn": lambda: torch.nn.BatchNorm2d(64),
}


@pytest.mark.parametrize("layer", MODULES)
def test_fresh_weights_are_distributed_as_pytorchs(layer: str) -> None:
    # Pooled over several draws, so that the greatest of a few hundred uniform numbers lies close to its bound.
    ours = [_network(seed).weights for seed in range(40)]
    torch.manual_seed(0)
    theirs = [MODULES[layer]().state_dict() for _ in range(40)]
    names = [name for name in ours[0] if name.startswith(f"{layer}.")]
    assert {name.partition(".")[2] for name in names} == set(theirs[0]) - {"num_batches_tracked"}
    for name in names:
        mine = np.concatenate([weights[name].reshape(-1) for weights in ours])
        other = np.concatenate([weights[name.partition(".")[2]].numpy().reshape(-1) for weights in theirs])
        assert mine.dtype == np.float32
        assert mine.max() == pytest.approx(other.max(), rel=0.01)
        assert mine.min() == pytest.approx(other.min(), rel=0.01)
        assert mine.std() == pytest.approx(other.std(), rel=0.05)
        assert abs(mine.mean() - other.mean()) <= 0.1 * max(other.std(), 1e-12)


def test_fresh_weights_follow_the_seed() -> None:
    same, again, other = _network(7).weights, _network(7).weights, _network(8).weights
    assert all(np.array_equal(same[name], again[name]) for name in same)
    assert not np.array_equal(same["conv.weight"], other["conv.weight"])
    assert not np.array_equal(same["conv.weight"].reshape(-1)[:64], same["fc.weight"].reshape(-1)[:64])


def test_fresh_weights_stay_the_same_from_version_to_version() -> None:
    # Federations start from a seed: other numbers would be another experiment.
    weights = _network(0).weights
    assert weights["conv.weight"].reshape(-1)[:3].tolist() == pytest.approx(FIRST_WEIGHTS, abs=1e-8)


FIRST_WEIGHTS = [(2 * number - 1) / 12 for number in np.random.default_rng(0).random(3)]
