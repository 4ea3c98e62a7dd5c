"""Gradients of every operation, on subsets, against finite differences of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from distreal_edge import Network, Plan
    from distreal_edge.network.reference import ReferenceExecutor

STEP = 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_the_slopes_of_the_loss(
    seed: int, every_operation: Plan, shuffled: Any, executor64: Any, draw_batch: Any, draw_subset: Any
) -> None:
    plan = every_operation
    network: Network = shuffled(plan, seed)
    executor: ReferenceExecutor = executor64(network)
    images, labels = draw_batch(plan, 4, seed)
    choose = np.random.default_rng(seed)
    subset = draw_subset(plan, choose)
    kept = subset.mask(plan.sizes)

    def loss() -> float:
        # A rate of 0 changes nothing; the same seed drops the same single elements every time.
        return executor.step(images, labels, subset, 0.0, 0.0, 0.0, np.random.default_rng(seed))

    loss()
    gradients = {name: momentum.clone() for name, momentum in executor.momentum.items()}
    for name, parameter in plan.parameters.items():
        touched = np.argwhere(np.broadcast_to(parameter.touched(kept), parameter.shape))
        if len(touched) == 0:  # a conv-group lost all it reads
            assert "grouped" in name
            continue
        for position in choose.permutation(touched)[:4]:
            place = tuple(position)
            middle = executor.weights[name][place].item()
            executor.weights[name][place] = middle + STEP
            above = loss()
            executor.weights[name][place] = middle - STEP
            below = loss()
            executor.weights[name][place] = middle
            slope = (above - below) / (2 * STEP)
            assert gradients[name][place].item() == pytest.approx(slope, rel=1e-5, abs=1e-8), name
