from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from distreal_edge.errors import NetworkError
from distreal_edge.network import PlanBuilder
from distreal_edge.network.operations import (
    OPERATION_TYPES,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    Multiply,
    Relu,
    has_weights,
    output_shape,
)

pairs = st.tuples(st.integers(1, 5), st.integers(1, 5))
margins = st.tuples(st.integers(0, 4), st.integers(0, 4))
sides = st.tuples(st.integers(1, 13), st.integers(1, 13))


def _shape_of_torch(make: object, *arguments: object, **settings: object) -> tuple[int, ...] | None:
    try:
        return tuple(make(*arguments, **settings).shape[1:])  # type: ignore[operator]
    except RuntimeError:
        return None


def _shape_of_ours(operation: object, *inputs: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return output_shape(operation, inputs)  # type: ignore[arg-type]
    except NetworkError:
        return None


@settings(max_examples=300, deadline=None)
@given(
    sides=sides,
    kernel=pairs,
    stride=pairs,
    padding=margins,
    dilation=pairs,
    groups=st.sampled_from([1, 2, 3, 6]),
    inputs=st.sampled_from([1, 2, 6]),
    outputs=st.sampled_from([1, 2, 6, 12]),
)
def test_a_convolution_has_the_shape_of_pytorch_or_both_refuse(
    sides: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    inputs: int,
    outputs: int,
) -> None:
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    operation = Conv2d(name="c", inputs=("input",), out_channels=outputs, kernel=kernel, **settings)
    expected = None
    if outputs % groups == 0 and inputs % groups == 0:
        images = torch.empty(1, inputs, *sides, device="meta")
        weights = torch.empty(outputs, inputs // groups, *kernel, device="meta")
        expected = _shape_of_torch(functional.conv2d, images, weights, **settings)
    assert _shape_of_ours(operation, (inputs, *sides)) == expected


@settings(max_examples=300, deadline=None)
@given(sides=sides, kernel=pairs, stride=pairs, padding=margins, average=st.booleans())
def test_a_pooling_has_the_shape_of_pytorch_or_both_refuse(
    sides: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], average: bool
) -> None:
    kind, oracle = (AvgPool, functional.avg_pool2d) if average else (MaxPool, functional.max_pool2d)
    operation = kind(name="p", inputs=("input",), kernel=kernel, stride=stride, padding=padding)
    images = torch.empty(1, 3, *sides, device="meta")
    expected = _shape_of_torch(oracle, images, kernel, stride=stride, padding=padding)
    assert _shape_of_ours(operation, (3, *sides)) == expected


def test_the_other_operations_have_the_shapes_that_their_names_say() -> None:
    maps = (4, 5, 6)
    assert output_shape(GlobalAvgPool(name="x", inputs=("a",)), (maps,)) == (4, 1, 1)
    assert output_shape(Flatten(name="x", inputs=("a",)), (maps,)) == (120,)
    assert output_shape(Linear(name="x", inputs=("a",), out_features=7), ((120,),)) == (7,)
    assert output_shape(Add(name="x", inputs=("a", "b")), (maps, maps)) == maps
    assert output_shape(Concat(name="x", inputs=("a", "b")), (maps, (3, 5, 6))) == (7, 5, 6)
    assert output_shape(Concat(name="x", inputs=("a", "b")), ((4,), (3,))) == (7,)
    assert output_shape(Relu(name="x", inputs=("a",)), (maps,)) == maps
    assert output_shape(BatchNorm(name="x", inputs=("a",)), ((4,),)) == (4,)
    assert output_shape(Dropout(name="x", inputs=("a",), p=0.5), (maps,)) == maps


@pytest.mark.parametrize("shapes", [((4, 5, 6), (4, 1, 1)), ((4, 1, 1), (4, 5, 6)), ((4, 5, 6), (4, 5, 6))])
def test_a_product_takes_one_factor_per_channel_on_either_side(shapes: tuple[tuple[int, ...], ...]) -> None:
    assert output_shape(Multiply(name="x", inputs=("a", "b")), shapes) == (4, 5, 6)


one = {"name": "x", "inputs": ("a",)}
two = {"name": "x", "inputs": ("a", "b")}


@pytest.mark.parametrize(
    ("operation", "shapes", "complaint"),
    [
        (Add(**two), ((4, 5, 6), (4, 5, 7)), r"'x' \(add\) adds values of shapes \(4, 5, 6\) and \(4, 5, 7\)"),
        (Add(**one), ((4,),), r"'x' \(add\) takes 2 inputs, got 1"),
        (Relu(**two), ((4,), (4,)), "takes 1 inputs, got 2"),
        (Multiply(**two), ((4, 5, 6), (3, 1, 1)), "multiplies shapes"),
        (Multiply(**two), ((4, 5, 6), (4,)), "multiplies shapes"),
        (Multiply(**two), ((4, 5, 6), (4, 5, 1)), "multiplies shapes"),
        (Concat(**two), ((4, 5, 6), (4, 5, 7)), "differ in more than channels"),
        (Concat(**two), ((4, 5, 6), (4,)), "differ in more than channels"),
        (Flatten(**one), ((4,),), r"reads maps \(C, H, W\), got features"),
        (GlobalAvgPool(**one), ((4,),), r"reads maps \(C, H, W\), got features"),
        (Conv2d(**one, out_channels=4, kernel=(1, 1)), ((4,),), r"reads maps \(C, H, W\), got features"),
        (Linear(**one, out_features=4), ((4, 5, 6),), "put a flatten before it"),
        (Conv2d(**one, out_channels=4, kernel=(1, 1), groups=3), ((4, 5, 6),), "3 groups, which do not divide 4"),
        (Conv2d(**one, out_channels=4, kernel=(7, 1)), ((4, 5, 6),), "a window of 7 on a side of 5 padded by 0"),
        (MaxPool(**one, kernel=(2, 2), stride=(2, 2), padding=(2, 0)), ((4, 5, 6),), "more than half of its window"),
    ],
)
def test_an_operation_says_why_it_does_not_fit(operation: object, shapes: tuple[object, ...], complaint: str) -> None:
    with pytest.raises(NetworkError, match=complaint):
        output_shape(operation, shapes)  # type: ignore[arg-type]


def test_every_kind_is_one_of_the_formats_words() -> None:
    assert [kind.__struct_config__.tag for kind in OPERATION_TYPES] == [
        *("conv2d", "batch_norm", "relu", "relu6", "hardswish", "sigmoid", "max_pool", "avg_pool", "global_avg_pool"),
        *("add", "multiply", "concat", "flatten", "linear", "dropout"),
    ]
    with_weights = [kind for kind in OPERATION_TYPES if kind in {Conv2d, BatchNorm, Linear}]
    assert [kind for kind in OPERATION_TYPES if has_weights(_example(kind))] == with_weights


def _example(kind: type) -> object:
    required = {"out_channels": 1, "kernel": (1, 1), "stride": (1, 1), "out_features": 1, "p": 0.0}
    fields = set(kind.__struct_fields__)
    return kind(**one, **{name: value for name, value in required.items() if name in fields})


def test_the_builder_numbers_each_kind_by_itself_and_takes_one_number_for_both_axes() -> None:
    builder = PlanBuilder((1, 9, 9))
    value = builder.conv2d("conv", builder.input, 2, kernel=3, stride=2, padding=(1, 0))
    value = builder.relu(builder.relu6(builder.relu(value)))
    value = builder.max_pool(value, kernel=(2, 1))
    value = builder.avg_pool(value, kernel=2, stride=1, padding=1, count_include_pad=False)
    assert value == "avg_pool#0"
    plan = builder.finish(builder.linear("fc", builder.flatten(builder.dropout(value, 0.1)), 2))
    names = ["conv", "relu#0", "relu6#0", "relu#1", "max_pool#0", "avg_pool#0", "dropout#0", "flatten#0", "fc"]
    assert [operation.name for operation in plan.operations] == names
    conv, pool, average = plan.operations[0], plan.operations[4], plan.operations[5]
    assert isinstance(conv, Conv2d)
    assert (conv.kernel, conv.stride, conv.padding) == ((3, 3), (2, 2), (1, 0))
    assert isinstance(pool, MaxPool)
    assert (pool.kernel, pool.stride) == ((2, 1), (2, 1))
    assert isinstance(average, AvgPool)
    assert (average.stride, average.padding, average.count_include_pad) == ((1, 1), (1, 1), False)
