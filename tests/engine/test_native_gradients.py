"""Gradients of the plain kernels in float64 against finite differences of their own loss."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from distreal_edge import Plan

STEP = 1e-6
PLACES = 6
"""How many elements of each tensor are looked at."""


def check_slopes(comparing: Any, problem: Any, chance: Random) -> None:
    plan = problem.network.plan
    engine, weights, momentum = comparing.plain64(problem)
    images = comparing.plain64_images(problem)
    arguments = comparing.native_arguments(problem) | {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0, "threads": 1}

    def loss() -> float:
        result: float = engine.step(images, **arguments)
        return result

    loss()
    gradients = {name: array.copy() for name, array in momentum.items()}
    kept = problem.subset.mask(plan.sizes)
    for name, parameter in plan.parameters.items():
        touched = np.argwhere(np.broadcast_to(parameter.touched(kept), parameter.shape))
        for position in chance.sample(list(touched), min(PLACES, len(touched))):
            place = tuple(position)
            middle = weights[name][place]
            weights[name][place] = middle + STEP
            above = loss()
            weights[name][place] = middle - STEP
            below = loss()
            weights[name][place] = middle
            slope = (above - below) / (2 * STEP)
            # What the step does not depend on keeps the momentum that it had.
            if slope != 0.0 or gradients[name][place] != problem.momentum[name][place]:
                assert gradients[name][place] == pytest.approx(slope, rel=1e-5, abs=1e-8), (name, place)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_every_operation_are_the_slopes_of_the_loss(
    seed: int, every_operation: Plan, shuffled: Any, draw_batch: Any, draw_subset: Any, comparing: Any
) -> None:
    images, labels = draw_batch(every_operation, 4, seed)
    subset = draw_subset(every_operation, np.random.default_rng(seed))
    problem = comparing.make_problem(shuffled(every_operation, seed), images, labels, subset, seed)
    check_slopes(comparing, problem, Random(seed))


@pytest.mark.parametrize("seed", range(30))
def test_gradients_of_random_networks_are_the_slopes_of_the_loss(
    seed: int, random_networks: Any, comparing: Any
) -> None:
    chance = Random(seed)
    while True:
        plan = random_networks.random_plan(chance)
        count = random_networks.smallest_batch(plan) + chance.randrange(5)
        images, labels = random_networks.random_batch(plan, count, seed, as_bytes=False)
        subset = random_networks.random_subset(plan, chance)
        network = random_networks.random_weights(plan, seed)
        problem = comparing.make_problem(network, images, labels, subset, seed)
        if not comparing.is_touchy(problem):
            break
    check_slopes(comparing, problem, chance)
