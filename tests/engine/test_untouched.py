"""A weight outside a mini-batch's subset is bit-for-bit untouched by it: value, momentum, weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge import Engine, Network, Plan
from distreal_edge.dropout import DRAW_POLICIES

if TYPE_CHECKING:
    from collections.abc import Callable

rates = st.one_of(st.just(0.0), st.floats(0.0, 0.99))


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(), policy=st.sampled_from(sorted(DRAW_POLICIES)), seed=st.integers(0, 2**32), number=st.integers(0, 9)
)
def test_steps_touch_exactly_the_surviving_rows_and_columns(
    data: st.DataObject,
    policy: str,
    seed: int,
    number: int,
    backend: str,
    every_operation: Plan,
    shuffled: Any,
    draw_batch: Any,
) -> None:
    network: Network = shuffled(every_operation, seed)
    vector = data.draw(st.lists(rates, min_size=len(network.groups), max_size=len(network.groups)))
    engine = Engine(network, backend, seed=seed)
    momentum = engine._backend.momentum
    subset = network.draw(vector, np.random.default_rng(seed), policy, number)
    kept = subset.mask(every_operation.sizes)
    images, labels = draw_batch(every_operation, 3, seed)

    loss = engine.step(images, labels, subset, lr=0.1, weight_decay=0.01)

    assert np.isfinite(loss)
    for name, parameter in every_operation.parameters.items():
        touched = np.broadcast_to(parameter.touched(kept), parameter.shape)
        before, after = network.weights[name], engine.weights[name]
        assert after[~touched].tobytes() == before[~touched].tobytes()
        assert momentum[name][~touched].tobytes() == bytes(4 * np.count_nonzero(~touched))
        assert np.all(momentum[name][touched] != 0.0)  # weight decay alone moves every surviving element
    for name in every_operation.statistics:
        assert engine.weights[name].tobytes() == network.weights[name].tobytes()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_momentum_gathered_by_one_subset_waits_unchanged_while_another_trains(
    seed: int, backend: str, every_operation: Plan, shuffled: Any, draw_batch: Any, draw_subset: Any
) -> None:
    engine = Engine(shuffled(every_operation, seed), backend)
    rng = np.random.default_rng(seed)
    images, labels = draw_batch(every_operation, 3, seed)
    engine.step(images, labels, draw_subset(every_operation, rng), lr=0.1)
    before = {name: tensor.copy() for name, tensor in engine._backend.momentum.items()}
    second = draw_subset(every_operation, rng)
    engine.step(images, labels, second, lr=0.1)
    kept = second.mask(every_operation.sizes)
    for name, parameter in every_operation.parameters.items():
        outside = ~np.broadcast_to(parameter.touched(kept), parameter.shape)
        assert engine._backend.momentum[name][outside].tobytes() == before[name][outside].tobytes()


@pytest.mark.parametrize("policy", sorted(DRAW_POLICIES))
def test_dropped_filters_may_hold_anything(
    policy: str, backend: str, every_operation: Plan, shuffled: Callable[..., Network], draw_batch: Any
) -> None:
    # Not even a NaN gets from a dropped filter into the step: nothing outside the subset is read.
    network = shuffled(every_operation, 0)
    subset = network.draw([0.5] * len(network.groups), np.random.default_rng(1), policy, 2)
    kept = subset.mask(every_operation.sizes)
    clean, spoilt = Engine(network, backend), Engine(network, backend)
    for name, parameter in every_operation.parameters.items():
        spoilt.weights[name][~np.broadcast_to(parameter.touched(kept), parameter.shape)] = np.nan
    images, labels = draw_batch(every_operation, 4, 0)
    for _ in range(3):
        assert clean.step(images, labels, subset, lr=0.1) == spoilt.step(images, labels, subset, lr=0.1)
