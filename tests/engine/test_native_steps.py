"""One step of the native engine beside PyTorch's, over random networks, subsets and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from distreal_edge import Engine, _native

if TYPE_CHECKING:
    from random import Random

patiently = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
chances = st.randoms(use_true_random=False)


def random_problem(random_networks: Any, comparing: Any, chance: Random) -> Any:
    plan = random_networks.random_plan(chance)
    count = max(random_networks.smallest_batch(plan), chance.randrange(1, 41))
    seed = chance.randrange(2**32)
    images, labels = random_networks.random_batch(plan, count, seed, as_bytes=chance.random() < 0.5)
    subset = random_networks.random_subset(plan, chance)
    return comparing.make_problem(random_networks.random_weights(plan, seed), images, labels, subset, seed)


@patiently
@given(chance=chances, threads=st.integers(1, 3))
def test_a_step_is_pytorchs_on_any_network(random_networks: Any, comparing: Any, chance: Random, threads: int) -> None:
    problem = random_problem(random_networks, comparing, chance)
    assume(not comparing.meets_a_corner(problem))
    outcome = comparing.engine_step(problem, threads=threads)
    comparing.check_as_close_as_float32(problem, outcome)
    comparing.check_untouched(problem, outcome)


@patiently
@given(chance=chances)
def test_the_plain_kernels_in_float64_are_pytorchs_on_any_network(
    random_networks: Any, comparing: Any, chance: Random
) -> None:
    problem = random_problem(random_networks, comparing, chance)
    outcome = comparing.plain64_step(problem)
    comparing.check_same(problem, outcome, comparing.reference_step(problem), tolerance=1e-9)


@pytest.mark.parametrize("instruction_set", [name for name in _native.instruction_sets() if name != "plain"])
@patiently
@given(chance=chances, threads=st.integers(1, 3))
def test_every_instruction_set_computes_what_the_plain_kernels_do(
    random_networks: Any, comparing: Any, instruction_set: str, chance: Random, threads: int
) -> None:
    problem = random_problem(random_networks, comparing, chance)
    assume(not comparing.meets_a_corner(problem))
    outcome = comparing.native_step(problem, instruction_set, threads=threads)
    comparing.check_as_close_as_float32(problem, outcome)
    plain = comparing.native_step(problem, "plain")
    comparing.check_as_close_as_float32(problem, plain)


@settings(max_examples=50, deadline=None)
@given(chance=chances, threads=st.integers(1, 3))
def test_passes_over_the_full_network_are_pytorchs(
    random_networks: Any, comparing: Any, chance: Random, threads: int
) -> None:
    problem = random_problem(random_networks, comparing, chance)
    ours, theirs = Engine(problem.network, "native"), Engine(problem.network, "reference")
    scores, expected = ours.predict(problem.images, threads=threads), theirs.predict(problem.images)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected), initial=1.0))
    measured = ours.measure_statistics([problem.images], threads=threads)
    for name, tensor in theirs.measure_statistics([problem.images]).items():
        np.testing.assert_allclose(measured[name], tensor, rtol=1e-3, atol=1e-5 * np.max(np.abs(tensor)))
