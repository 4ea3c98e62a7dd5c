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
    assume(not comparing.is_touchy(problem))
    outcome = comparing.engine_step(problem, threads=threads)
    comparing.check_as_close_as_float32(problem, outcome)
    comparing.check_untouched(problem, outcome)


@patiently
@given(chance=chances)
def test_the_plain_kernels_in_float64_are_pytorchs_on_any_network(
    random_networks: Any, comparing: Any, chance: Random
) -> None:
    problem = random_problem(random_networks, comparing, chance)
    assume(not comparing.is_touchy(problem, corners=False))
    outcome = comparing.plain64_step(problem)
    comparing.check_same(problem, outcome, comparing.reference_step(problem), tolerance=1e-9)


@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
@patiently
@given(chance=chances, threads=st.integers(1, 3))
def test_every_instruction_set_computes_what_pytorch_does(
    random_networks: Any, comparing: Any, instruction_set: str, chance: Random, threads: int
) -> None:
    problem = random_problem(random_networks, comparing, chance)
    assume(not comparing.is_touchy(problem))
    outcome = comparing.native_step(problem, instruction_set, threads=threads)
    # The plain kernels add up one number after the other, so that they round more often.
    comparing.check_as_close_as_float32(problem, outcome, times=256.0 if instruction_set == "plain" else 16.0)


@settings(max_examples=50, deadline=None)
@given(chance=chances, threads=st.integers(1, 3))
def test_passes_over_the_full_network_are_pytorchs(
    random_networks: Any, comparing: Any, chance: Random, threads: int
) -> None:
    problem = random_problem(random_networks, comparing, chance)
    engine = Engine(problem.network, "native")
    scores, expected = engine.predict(problem.images, threads=threads), comparing.predicted(problem)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected), initial=1.0))
    measured, (moments, cancellation) = (
        engine._backend.batch_moments(problem.images, threads),
        comparing.moments(problem),
    )
    assert list(measured) == list(moments)
    tolerance = 1e-5 * max(10.0, cancellation)
    for name, (mean, variance) in moments.items():
        np.testing.assert_allclose(
            measured[name][0], mean, rtol=0, atol=tolerance * np.max(np.abs(mean) + variance**0.5)
        )
        np.testing.assert_allclose(measured[name][1], variance, rtol=0, atol=tolerance * np.max(mean**2 + variance))


@settings(max_examples=50, deadline=None)
@given(chance=chances)
def test_passes_of_the_plain_kernels_in_float64_are_pytorchs(
    random_networks: Any, comparing: Any, chance: Random
) -> None:
    problem = random_problem(random_networks, comparing, chance)
    engine, _, _ = comparing.plain64(problem)
    images = comparing.plain64_images(problem)
    expected = comparing.predicted(problem)
    scores = np.empty_like(expected)
    engine.predict(images, scores, 1)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9 * np.max(np.abs(expected), initial=1.0))
    moments, cancellation = comparing.moments(problem)
    for (mean, variance), measured in zip(moments.values(), engine.batch_moments(images, 1), strict=True):
        tolerance = 1e-10 * max(10.0, cancellation)
        np.testing.assert_allclose(measured[0], mean, rtol=0, atol=tolerance * np.max(np.abs(mean) + variance**0.5))
        np.testing.assert_allclose(measured[1], variance, rtol=0, atol=tolerance * np.max(mean**2 + variance))
