from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.dropout import Subset
from distreal_edge.errors import DataError, NetworkError
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.network.cost import step_cost
from distreal_edge.network.operations import BatchNorm, Conv2d, Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from distreal_edge.network import Plan

seeds = st.integers(0, 2**32)


def _count_macs(plan: Plan, kept: NDArray[np.bool_]) -> int:
    """Count every multiplication, one by one."""
    total = 0
    trainable = {"input": False}
    for operation in plan.operations:
        reads = operation.inputs[0]
        weighted = isinstance(operation, (Conv2d, Linear, BatchNorm))
        trainable[operation.name] = weighted or any(trainable[value] for value in operation.inputs)
        if not isinstance(operation, (Conv2d, Linear)):
            continue
        passes = 2 + trainable[reads]
        outputs, inputs = plan.shapes[operation.name], plan.shapes[reads]
        groups = operation.groups if isinstance(operation, Conv2d) else 1
        window = operation.kernel if isinstance(operation, Conv2d) else (1, 1)
        rows, columns = outputs[1:] or (1, 1)
        for output in range(outputs[0]):
            group = output // (outputs[0] // groups)
            for source in range(group * (inputs[0] // groups), (group + 1) * (inputs[0] // groups)):
                if not (kept[plan.layout.of[operation.name][output]] and kept[plan.layout.of[reads][source]]):
                    continue
                for _row in range(rows):
                    for _column in range(columns):
                        for _y in range(window[0]):
                            for _x in range(window[1]):
                                total += passes
    return total


@settings(max_examples=60, deadline=None)
@given(plan_seed=seeds, mask_seed=seeds)
def test_macs_are_what_one_would_count_by_hand(
    random_plan: Callable[[int], Plan],
    random_mask: Callable[[Plan, int], NDArray[np.bool_]],
    plan_seed: int,
    mask_seed: int,
) -> None:
    plan = random_plan(plan_seed)
    for kept in (np.ones(plan.filters + 1, dtype=np.bool_), random_mask(plan, mask_seed)):
        assert step_cost(plan, kept, 1).macs == _count_macs(plan, kept)


def _small() -> Network:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("conv", builder.input, 8, kernel=3, padding=1, bias=False)
    value = builder.batch_norm("bn", value)
    value = builder.conv2d("narrow", value, 4, kernel=1)
    return Network.initialise(builder.finish(builder.linear("fc", builder.flatten(value), 10)))


def test_a_small_networks_cost_in_figures() -> None:
    conv, narrow, linear = 8 * 3 * 9 * 64, 4 * 8 * 64, 10 * 256
    cost = _small().cost((0.0, 0.0), batch=2)
    assert cost.macs == 2 * conv + 3 * narrow + 3 * linear
    trained = 8 * 3 * 9 + 16 + 4 * 8 + 4 + 10 * 256 + 10
    # Weights with statistics, and momentum, besides what the engine reserves for the step.
    reserved = _small().plan.native.step_bytes(np.ones(13, dtype=np.bool_), 2)
    assert cost.peak_bytes == reserved + 4 * (trained + 16 + trained)


def test_the_memory_of_a_step_is_what_must_be_held_and_not_much_more() -> None:
    # What nobody can do without until the backward pass: the images, and what each convolution and the batch norm read.
    read = [3 * 64, 8 * 64, 8 * 64, 4 * 64]
    reserved = _small().plan.native.step_bytes(np.ones(13, dtype=np.bool_), 64)
    assert 4 * 64 * (sum(read) - read[1]) <= reserved <= 2 * 4 * 64 * (sum(read) + 8 * 64) + 2**17


def test_half_of_the_filters_cost_a_quarter_between_two_groups() -> None:
    conv, narrow, linear = 4 * 3 * 9 * 64, 2 * 4 * 64, 10 * 128
    assert _small().cost((0.5, 0.5)).macs == 2 * conv + 3 * narrow + 3 * linear


def test_a_vector_costs_what_its_subset_costs() -> None:
    network = _small()
    vector = (0.3, 0.8)
    for policy in ("ordered", "random", "sticky", "rolling"):
        subset = network.draw(vector, np.random.default_rng(1), policy, round_number=5)
        assert network.cost(vector, batch=16) == network.cost(subset, batch=16)


def test_memory_grows_with_the_batch_and_macs_do_not() -> None:
    network = _small()
    costs = [network.cost((0.0, 0.0), batch=batch) for batch in (16, 32, 64, 256)]
    assert len({cost.macs for cost in costs}) == 1
    memory = [cost.peak_bytes for cost in costs]
    assert memory == sorted(set(memory))


def test_memory_shrinks_with_the_filters() -> None:
    network = _small()
    memory = [network.cost((rate, rate), batch=64).peak_bytes for rate in (0.0, 0.25, 0.5, 0.75)]
    assert memory == sorted(set(memory), reverse=True)


def test_cost_refuses_what_does_not_fit_the_network() -> None:
    network = _small()
    with pytest.raises(DataError, match="got 1 rate for 2 filter groups"):
        network.cost((0.0,))
    with pytest.raises(NetworkError, match="a batch has at least one image, got 0"):
        network.cost((0.0, 0.0), batch=0)
    with pytest.raises(NetworkError, match="a batch has at most 1048576 images, got 10000000000"):
        network.cost((0.0, 0.0), batch=10**10)
    with pytest.raises(DataError, match=r"within 0\.\.3"):
        network.cost(Subset((np.arange(8), np.arange(5))))
