from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.network.operations import BatchNorm, Conv2d

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from distreal_edge.network import Plan

seeds = st.integers(0, 2**32)


def _is_touched(plan: Plan, tensor: str, index: tuple[int, ...], kept: NDArray[np.bool_]) -> bool:
    # An element is trained when the channel it makes and the channel it reads are both there.
    name, _, what = tensor.rpartition(".")
    operation = next(operation for operation in plan.operations if operation.name == name)
    output = plan.layout.of[name][index[0]]
    if what == "bias" or isinstance(operation, BatchNorm):
        return bool(output < 0 or kept[output])
    channels = plan.shapes[operation.inputs[0]][0]
    groups = operation.groups if isinstance(operation, Conv2d) else 1
    group = index[0] // (plan.tensors[tensor][0] // groups)
    source = plan.layout.of[operation.inputs[0]][group * (channels // groups) + index[1]]
    return bool((output < 0 or kept[output]) and (source < 0 or kept[source]))


@settings(max_examples=60, deadline=None)
@given(plan_seed=seeds, mask_seed=seeds)
def test_an_element_is_touched_when_what_it_makes_and_what_it_reads_survive(
    random_plan: Callable[[int], Plan],
    random_mask: Callable[[Plan, int], NDArray[np.bool_]],
    plan_seed: int,
    mask_seed: int,
) -> None:
    plan = random_plan(plan_seed)
    kept = random_mask(plan, mask_seed)
    for tensor, parameter in plan.parameters.items():
        shape = plan.tensors[tensor]
        assert parameter.shape == shape
        expected = np.array([_is_touched(plan, tensor, index, kept) for index in product(*map(range, shape))])
        touched = parameter.touched(kept)
        assert touched.dtype == np.bool_
        assert np.array_equal(np.broadcast_to(touched, shape).reshape(-1), expected)
        assert parameter.surviving(kept) == expected.sum()


@settings(max_examples=30, deadline=None)
@given(plan_seed=seeds, mask_seed=seeds, images=st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_images_are_counted_for_every_element_that_they_trained(
    random_plan: Callable[[int], Plan],
    random_mask: Callable[[Plan, int], NDArray[np.bool_]],
    plan_seed: int,
    mask_seed: int,
    images: list[int],
) -> None:
    plan = random_plan(plan_seed)
    kept = np.stack([random_mask(plan, mask_seed + kind) for kind in range(len(images))])
    for tensor, parameter in plan.parameters.items():
        expected = np.zeros(parameter.shape, dtype=np.int64)
        for mask, count in zip(kept, images, strict=True):
            for index in product(*map(range, parameter.shape)):
                if _is_touched(plan, tensor, index, mask):
                    expected[index] += count
        counted = parameter.images_per_element(kept, np.array(images, dtype=np.int64))
        assert counted.dtype == np.float64
        assert np.array_equal(np.broadcast_to(counted, parameter.shape), expected)


def test_every_element_is_touched_by_the_full_network(random_plan: Callable[[int], Plan]) -> None:
    plan = random_plan(3)
    kept = np.ones(plan.filters + 1, dtype=np.bool_)
    assert all(parameter.touched(kept).all() for parameter in plan.parameters.values())
