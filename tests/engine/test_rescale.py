"""Rescaling makes up for what a sum misses, where no batch norm does."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from distreal_edge import Network, Plan, PlanBuilder, Subset
from distreal_edge.network import reference
from distreal_edge.network.reference import ReferenceExecutor


def _scores(plan: Plan, weights: Any, images: Any, subset: Subset) -> Any:
    executor = ReferenceExecutor(plan, weights, torch.float64)
    survivors = reference._Survivors.of(plan, subset)
    parts = reference._read_parts(plan, executor.weights, survivors)
    return executor._forward(images, survivors, parts, reference._train_batch_norm, None).numpy()


def _linear_plan(*, rescale: bool | None) -> Plan:
    b = PlanBuilder((2, 3, 3))
    x = b.conv2d("conv2", b.conv2d("conv1", b.input, 5, kernel=2), 3, kernel=1)
    return b.finish(b.linear("fc", b.flatten(x), 4), rescale=rescale)


def test_in_a_linear_network_the_mean_over_all_subsets_is_the_full_network(shuffled: Any, draw_batch: Any) -> None:
    plan = _linear_plan(rescale=None)
    network: Network = shuffled(plan, 0)
    images, _ = draw_batch(plan, 4, 0)
    subsets = [
        Subset((np.array(first), np.array(second)))
        for first in combinations(range(5), 2)
        for second in combinations(range(3), 2)
    ]
    mean = np.mean([_scores(plan, network.weights, images, subset) for subset in subsets], axis=0)
    full = ReferenceExecutor(plan, network.weights, torch.float64).predict(images)
    np.testing.assert_allclose(mean, full, rtol=1e-10)


def test_without_rescaling_survivors_are_summed_as_they_are(shuffled: Any, draw_batch: Any) -> None:
    plan = _linear_plan(rescale=False)
    network: Network = shuffled(plan, 0)
    images, _ = draw_batch(plan, 4, 0)
    subset = Subset((np.array([1, 4]), np.array([0, 2])))
    zeroed = {name: tensor.copy() for name, tensor in network.weights.items()}
    zeroed["conv2.weight"][:, [0, 2, 3]] = 0.0
    zeroed["fc.weight"].reshape(4, 3, 4)[:, 1] = 0.0
    masked = ReferenceExecutor(plan, zeroed, torch.float64).predict(images)
    np.testing.assert_allclose(_scores(plan, network.weights, images, subset), masked, rtol=1e-10)


def test_a_layer_before_a_batch_norm_is_not_rescaled(shuffled: Any, draw_batch: Any) -> None:
    b = PlanBuilder((2, 4, 4))
    x = b.conv2d("conv2", b.conv2d("conv1", b.input, 6, kernel=1), 4, kernel=1)
    x = b.batch_norm("bn", x, epsilon=1.0)  # large, so that a scaled input does not cancel
    score = b.linear("fc", b.flatten(b.global_avg_pool(x)), 3)
    _check_only_the_classifier_is_rescaled(
        b, score, (np.array([1, 2]), np.array([0, 1, 3])), 4 / 3, shuffled, draw_batch
    )


def test_a_depthwise_convolution_is_not_rescaled(shuffled: Any, draw_batch: Any) -> None:
    b = PlanBuilder((2, 4, 4))
    x = b.conv2d("deep", b.conv2d("conv1", b.input, 6, kernel=1), 12, kernel=3, groups=6)
    score = b.linear("fc", b.flatten(b.global_avg_pool(x)), 3)
    _check_only_the_classifier_is_rescaled(b, score, (np.array([0, 2, 5]),), 6 / 3, shuffled, draw_batch)


def _check_only_the_classifier_is_rescaled(
    builder: PlanBuilder, output: str, survivors: Any, factor: float, shuffled: Any, draw_batch: Any
) -> None:
    on, off = builder.finish(output, rescale=True), builder.finish(output, rescale=False)
    network: Network = shuffled(on, 3)
    images, _ = draw_batch(on, 5, 3)
    scaled = {**network.weights, "fc.weight": (network.weights["fc.weight"] * np.float32(factor))}
    subset = Subset(survivors)
    ours = _scores(on, network.weights, images, subset)
    np.testing.assert_allclose(ours, _scores(off, scaled, images, subset), rtol=1e-6)
    assert not np.allclose(ours, _scores(off, network.weights, images, subset), rtol=1e-3)


@pytest.mark.parametrize("rescale", [True, False])
def test_the_full_network_is_never_rescaled(rescale: bool, shuffled: Any, draw_batch: Any) -> None:
    plan = _linear_plan(rescale=rescale)
    network: Network = shuffled(plan, 0)
    images, _ = draw_batch(plan, 4, 0)
    full = ReferenceExecutor(plan, network.weights, torch.float64).predict(images)
    np.testing.assert_array_equal(_scores(plan, network.weights, images, Subset.full(plan.sizes)), full)
