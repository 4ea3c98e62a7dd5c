from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.network import FilterGroup, PlanBuilder
from distreal_edge.network.operations import Add, Concat, Conv2d, Flatten, Linear, Multiply

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.network import Plan


def _head(builder: PlanBuilder, value: str) -> Plan:
    return builder.finish(builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), 10))


def _groups(plan: Plan) -> list[tuple[str, int]]:
    return [(group.name, group.filters) for group in plan.groups]


def test_a_chain_has_one_group_per_convolution() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("conv1", builder.input, 4, kernel=3, padding=1)
    value = builder.conv2d("conv2", builder.relu(builder.batch_norm("bn1", value)), 6, kernel=3)
    plan = _head(builder, value)
    assert plan.groups == (FilterGroup("conv1", 4), FilterGroup("conv2", 6))
    assert plan.group_offsets == (0, 4, 10)
    assert plan.filters == 10
    assert plan.layout.of["input"].tolist() == [-1, -1, -1]
    assert plan.layout.of["relu#0"].tolist() == [0, 1, 2, 3]
    assert plan.layout.of["flatten#0"].tolist() == [4, 5, 6, 7, 8, 9]
    assert plan.layout.of["fc"].tolist() == [-1] * 10
    assert plan.layout.streams == frozenset()
    assert plan.layout.of["conv2"].dtype == np.int32


def test_an_addition_ties_its_sides_into_one_stream() -> None:
    builder = PlanBuilder((3, 8, 8))
    stem = builder.conv2d("stem", builder.input, 4, kernel=3, padding=1)
    inner = builder.conv2d("block.conv1", stem, 8, kernel=3, padding=1)
    outer = builder.conv2d("block.conv2", inner, 4, kernel=3, padding=1)
    plan = _head(builder, builder.add(outer, stem))
    assert _groups(plan) == [("stem", 4), ("block.conv1", 8)]
    assert plan.layout.of["block.conv2"].tolist() == plan.layout.of["stem"].tolist() == [0, 1, 2, 3]
    assert plan.layout.streams == {0}


def test_a_dense_block_keeps_the_groups_of_its_parts_by_offset() -> None:
    builder = PlanBuilder((3, 8, 8))
    stem = builder.conv2d("stem", builder.input, 4, kernel=3, padding=1)
    first = builder.conv2d("grow1", stem, 2, kernel=3, padding=1)
    both = builder.concat(stem, first)
    second = builder.conv2d("grow2", builder.batch_norm("bn2", both), 2, kernel=3, padding=1)
    plan = _head(builder, builder.concat(both, second))
    assert _groups(plan) == [("stem", 4), ("grow1", 2), ("grow2", 2)]
    assert plan.layout.of["bn2"].tolist() == [0, 1, 2, 3, 4, 5]
    assert plan.layout.of["concat#1"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert plan.layout.streams == frozenset()


def test_an_inception_block_has_a_group_per_branch() -> None:
    builder = PlanBuilder((3, 8, 8))
    stem = builder.conv2d("stem", builder.input, 4, kernel=3, padding=1)
    narrow = builder.conv2d("narrow", stem, 3, kernel=1)
    reduce = builder.conv2d("reduce", stem, 2, kernel=1)
    wide = builder.conv2d("wide", reduce, 5, kernel=3, padding=1)
    pooled = builder.avg_pool(stem, kernel=3, stride=1, padding=1)
    plan = _head(builder, builder.concat(narrow, wide, pooled))
    assert _groups(plan) == [("stem", 4), ("narrow", 3), ("reduce", 2), ("wide", 5)]
    assert plan.layout.of["concat#0"].tolist() == [4, 5, 6, 9, 10, 11, 12, 13, 0, 1, 2, 3]


def test_a_depthwise_convolution_follows_what_it_reads() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("expand", builder.input, 4, kernel=1)
    value = builder.conv2d("depthwise", value, 8, kernel=3, padding=1, groups=4)
    plan = _head(builder, builder.conv2d("project", value, 5, kernel=1))
    assert _groups(plan) == [("expand", 4), ("project", 5)]
    assert plan.layout.of["depthwise"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_depthwise_convolution_on_the_input_is_never_dropped() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("depthwise", builder.input, 6, kernel=3, groups=3)
    plan = _head(builder, value)
    assert plan.groups == ()
    assert plan.filters == 0
    assert plan.layout.of["depthwise"].tolist() == [-1] * 6


def test_one_group_of_one_channel_is_an_ordinary_convolution() -> None:
    builder = PlanBuilder((1, 8, 8))
    plan = _head(builder, builder.conv2d("conv", builder.input, 6, kernel=3, groups=1))
    assert _groups(plan) == [("conv", 6)]


def test_a_grouped_convolution_makes_filters_of_its_own() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("conv1", builder.input, 4, kernel=3)
    plan = _head(builder, builder.conv2d("grouped", value, 6, kernel=3, groups=2))
    assert _groups(plan) == [("conv1", 4), ("grouped", 6)]
    assert plan.parameters["grouped.weight"].rows.tolist() == [[4, 5, 6], [7, 8, 9]]
    assert plan.parameters["grouped.weight"].columns is not None
    assert plan.parameters["grouped.weight"].columns.tolist() == [[0, 1], [2, 3]]


def test_a_squeeze_excite_follows_what_it_scales_and_is_no_stream() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("conv", builder.input, 4, kernel=3)
    squeeze = builder.conv2d("squeeze", builder.global_avg_pool(value), 2, kernel=1)
    excite = builder.conv2d("excite", builder.relu(squeeze), 4, kernel=1)
    plan = _head(builder, builder.multiply(builder.sigmoid(excite), value))
    assert _groups(plan) == [("conv", 4), ("squeeze", 2)]
    assert plan.layout.of["excite"].tolist() == [0, 1, 2, 3]
    assert plan.layout.streams == frozenset()


def test_an_addition_over_a_concatenation_splits_a_convolution() -> None:
    builder = PlanBuilder((3, 8, 8))
    left = builder.conv2d("a", builder.input, 12, kernel=1)
    right = builder.conv2d("b", builder.input, 20, kernel=1)
    wide = builder.conv2d("wide", builder.input, 32, kernel=1)
    plan = _head(builder, builder.add(wide, builder.concat(left, right)))
    assert _groups(plan) == [("a", 12), ("b", 20)]
    assert plan.layout.of["wide"].tolist() == list(range(32))
    assert plan.layout.streams == {0, 1}


def test_the_parts_of_a_split_convolution_are_named_by_their_channels() -> None:
    builder = PlanBuilder((3, 8, 8))
    wide = builder.conv2d("wide", builder.input, 32, kernel=1)
    left = builder.conv2d("a", builder.input, 12, kernel=1)
    right = builder.conv2d("b", builder.input, 20, kernel=1)
    plan = _head(builder, builder.add(wide, builder.concat(left, right)))
    assert _groups(plan) == [("wide[0:12]", 12), ("wide[12:32]", 20)]


def test_a_value_joined_to_itself_stays_one_group() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("conv", builder.input, 4, kernel=1)
    plan = _head(builder, builder.concat(value, value))
    assert _groups(plan) == [("conv", 4)]
    assert plan.layout.of["concat#0"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert plan.parameters["fc.weight"].columns is not None
    assert plan.parameters["fc.weight"].columns.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]


def test_the_networks_input_stays_undropped_inside_a_concatenation() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("conv", builder.input, 2, kernel=1)
    plan = _head(builder, builder.concat(builder.input, value))
    assert plan.layout.of["concat#0"].tolist() == [-1, -1, -1, 0, 1]


def test_what_is_added_to_the_input_is_never_dropped() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("conv", builder.input, 3, kernel=1)
    plan = _head(builder, builder.add(value, builder.input))
    assert plan.groups == ()
    assert plan.layout.of["conv"].tolist() == [-1, -1, -1]
    assert plan.layout.streams == frozenset()


def test_class_scores_made_by_a_convolution_are_never_dropped() -> None:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("conv", builder.input, 4, kernel=3)
    scores = builder.flatten(builder.global_avg_pool(builder.conv2d("scores", value, 10, kernel=1)))
    plan = builder.finish(scores)
    assert _groups(plan) == [("conv", 4)]
    assert plan.layout.of["scores"].tolist() == [-1] * 10


def test_a_flatten_spreads_a_filter_over_its_columns() -> None:
    builder = PlanBuilder((1, 4, 4))
    value = builder.conv2d("conv", builder.input, 2, kernel=3)
    plan = builder.finish(builder.linear("fc", builder.flatten(value), 3))
    assert plan.layout.of["flatten#0"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_a_long_chain_of_ties_is_one_group(order: str) -> None:
    # Convolutions tied pairwise, far ends last or first: whatever way the ties are followed, one group remains.
    builder = PlanBuilder((1, 2, 2))
    values = [builder.conv2d(f"conv{number}", builder.input, 3, kernel=1) for number in range(200)]
    if order == "descending":
        values.reverse()
    for left, right in pairwise(values):
        value = builder.add(left, right)
    plan = _head(builder, value)
    assert _groups(plan) == [("conv0", 3)]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_layout_equals_a_walk_over_the_graph_of_channels(random_plan: Callable[[int], Plan], seed: int) -> None:
    plan = random_plan(seed)
    component, kinds = _walk(plan)
    droppable = {name: [node for node in kinds if node[0] == name] for name, _ in kinds}
    # Filters in the order in which they are first made, by the convolutions that make them.
    makers: dict[int, list[str]] = defaultdict(list)
    for name, nodes in droppable.items():
        for node in nodes:
            if name not in makers[component[node]]:
                makers[component[node]].append(name)
    makers.pop(component["never"], None)
    members: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for filter_component, names in makers.items():
        members[tuple(names)].append(filter_component)
    number = {component["never"]: -1}
    for filters in members.values():
        for filter_component in filters:
            number[filter_component] = len(number) - 1
    for value, shape in plan.shapes.items():
        assert plan.layout.of[value].tolist() == [number[component[value, channel]] for channel in range(shape[0])]
    assert list(plan.sizes) == [len(filters) for filters in members.values()]
    assert [group.name.partition("[")[0] for group in plan.groups] == [names[0] for names in members]
    assert len({group.name for group in plan.groups}) == len(plan.groups)
    added = {operation.inputs[0] for operation in plan.operations if isinstance(operation, Add)}
    positions = {names: position for position, names in enumerate(members)}
    streams = set()
    for value in added:
        for channel in range(plan.shapes[value][0]):
            if (node := component[value, channel]) != component["never"]:
                streams.add(positions[tuple(makers[node])])
    assert plan.layout.streams == streams


def _walk(plan: Plan) -> tuple[dict[object, int], list[tuple[str, int]]]:
    # Which component of the graph every channel of every value is in, and the channels that convolutions make.
    edges: dict[object, list[object]] = defaultdict(list)

    def join(one: object, other: object) -> None:
        edges[one].append(other)
        edges[other].append(one)

    made: list[tuple[str, int]] = []
    for channel in range(plan.input_shape[0]):
        join("never", ("input", channel))
    for operation in plan.operations:
        name = operation.name
        channels = plan.shapes[name][0]
        reads = plan.shapes[operation.inputs[0]]
        if isinstance(operation, Conv2d) and not (operation.groups == reads[0] and reads[0] > 1):
            made += [(name, channel) for channel in range(channels)]
        elif isinstance(operation, Linear):
            for channel in range(channels):
                join("never", (name, channel))
        elif isinstance(operation, Concat):
            parts = [(value, channel) for value in operation.inputs for channel in range(plan.shapes[value][0])]
            for channel, part in enumerate(parts):
                join((name, channel), part)
        else:
            spread = channels // reads[0] if isinstance(operation, (Conv2d, Flatten)) else 1
            for channel in range(channels):
                join((name, channel), (operation.inputs[0], channel // spread))
                if isinstance(operation, (Add, Multiply)):
                    join((name, channel), (operation.inputs[1], channel))
    for channel in range(plan.classes):
        join("never", (plan.output, channel))
    component: dict[object, int] = {}
    nodes = ["never", *((value, channel) for value, shape in plan.shapes.items() for channel in range(shape[0]))]
    for node in nodes:
        waiting = [node] if node not in component else []
        mark = len(component)
        while waiting:
            reached = waiting.pop()
            if reached not in component:
                component[reached] = mark
                waiting += edges[reached]
    return component, made
