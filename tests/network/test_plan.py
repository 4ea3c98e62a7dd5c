from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.errors import NetworkError
from distreal_edge.network import Network, Plan, PlanBuilder, Preprocessing
from distreal_edge.network.operations import Add, BatchNorm, Conv2d, Flatten, Linear, MaxPool, Operation, Relu

if TYPE_CHECKING:
    from collections.abc import Callable

FLATTEN = Flatten(name="flatten#0", inputs=("input",))
LINEAR = Linear(name="fc", inputs=("flatten#0",), out_features=3)


def _plan(*operations: Operation, input_shape: tuple[int, ...] = (1, 4, 4), **settings: object) -> Plan:
    return Plan(input_shape, operations, rescale=False, **settings)  # type: ignore[arg-type]


def _small(**settings: object) -> Plan:
    builder = PlanBuilder((2, 6, 6))
    value = builder.conv2d("conv", builder.input, 4, kernel=3, bias=False)
    value = builder.batch_norm("bn", value)
    return builder.finish(builder.linear("fc", builder.flatten(value), 5), **settings)  # type: ignore[arg-type]


def test_a_plan_knows_its_tensors_by_the_names_of_pytorch() -> None:
    plan = _small()
    assert dict(plan.tensors) == {
        "conv.weight": (4, 2, 3, 3),
        "bn.weight": (4,),
        "bn.bias": (4,),
        "bn.running_mean": (4,),
        "bn.running_var": (4,),
        "fc.weight": (5, 64),
        "fc.bias": (5,),
    }
    assert list(plan.parameters) == ["conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias"]
    assert dict(plan.statistics) == {"bn.running_mean": (4,), "bn.running_var": (4,)}
    assert plan.output == "fc"
    assert plan.classes == 5
    assert [reader.name for reader in plan.readers["conv"]] == ["bn"]
    assert plan.readers["fc"] == ()


def test_only_what_follows_a_weight_needs_a_gradient() -> None:
    builder = PlanBuilder((1, 8, 8))
    pooled = builder.max_pool(builder.input, kernel=2)
    value = builder.conv2d("conv", pooled, 2, kernel=1)
    joined = builder.concat(pooled, value)
    plan = builder.finish(builder.linear("fc", builder.flatten(joined), 2))
    assert plan.differentiable == {"conv", "concat#0", "flatten#0", "fc"}


def test_rescaling_is_for_what_no_normalisation_follows() -> None:
    builder = PlanBuilder((1, 8, 8))
    first = builder.conv2d("normalised", builder.input, 4, kernel=1)
    value = builder.batch_norm("bn", first)
    value = builder.conv2d("depthwise", value, 4, kernel=1, groups=4)
    value = builder.conv2d("plain", value, 4, kernel=1)
    both = builder.conv2d("half_normalised", value, 4, kernel=1)
    value = builder.add(builder.batch_norm("bn2", both), both)
    operations = {
        operation.name: operation
        for operation in builder.finish(builder.linear("fc", builder.flatten(value), 2), rescale=True).operations
    }
    plan = Plan((1, 8, 8), tuple(operations.values()), rescale=True)
    rescaled = {name for name, operation in operations.items() if plan.rescales(operation)}
    assert rescaled == {"plain", "half_normalised", "fc"}
    silent = Plan((1, 8, 8), tuple(operations.values()), rescale=False)
    assert not any(silent.rescales(operation) for operation in silent.operations)


def test_rescaling_is_on_exactly_without_batch_norm_unless_said_otherwise() -> None:
    builder = PlanBuilder((1, 4, 4))
    output = builder.linear("fc", builder.flatten(builder.input), 2)
    assert builder.finish(output).rescale
    assert not builder.finish(output, rescale=False).rescale
    assert not _small().rescale
    assert _small(rescale=True).rescale


def test_the_digest_is_the_documented_one_of_the_canonical_json() -> None:
    plan = _plan(FLATTEN, LINEAR)
    document = {
        "input_shape": [1, 4, 4],
        "operations": [
            {"kind": "flatten", "name": "flatten#0", "inputs": ["input"]},
            {"kind": "linear", "name": "fc", "inputs": ["flatten#0"], "out_features": 3, "bias": True},
        ],
        "preprocessing": {"mean": [], "std": [], "crop_padding": 0, "horizontal_flip": False},
        "rescale": False,
    }
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert plan.digest == hashlib.sha256(canonical).hexdigest()
    del document["preprocessing"]
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert plan.structure == hashlib.sha256(canonical).hexdigest()


def test_the_structure_follows_what_is_computed_and_not_how_images_are_prepared() -> None:
    assert _small().structure != _small(rescale=True).structure
    assert _small().structure == _small(preprocessing=Preprocessing(horizontal_flip=True)).structure


def test_the_digest_follows_the_plan_and_not_the_weights() -> None:
    assert _small().digest == _small().digest
    assert _small().digest != _small(rescale=True).digest
    assert _small().digest != _small(preprocessing=Preprocessing(horizontal_flip=True)).digest
    assert Network.initialise(_small(), seed=0).digest == Network.initialise(_small(), seed=1).digest


@pytest.mark.parametrize("number", [1, np.float64(1.0), np.int64(1)])
def test_a_number_makes_the_same_plan_however_it_is_written(number: float) -> None:
    written = Preprocessing(mean=(number, number), std=(number, number))
    plain = Preprocessing(mean=(1.0, 1.0), std=(1.0, 1.0))
    plan = _small(preprocessing=written)
    assert plan.digest == _small(preprocessing=plain).digest
    assert Network.from_bytes(Network.initialise(plan).to_bytes()).plan == plan


def test_lists_are_taken_for_tuples() -> None:
    plan = Plan([1, 4, 4], [FLATTEN, LINEAR], rescale=False)  # type: ignore[arg-type]
    assert plan == _plan(FLATTEN, LINEAR)
    assert plan.shapes["input"] == (1, 4, 4)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_plan, "a plan has 1 to 4096 operations, got 0"),
        (lambda: _plan(*[FLATTEN] * 4097), "a plan has 1 to 4096 operations, got 4097"),
        (lambda: _plan(FLATTEN, FLATTEN), "two values are named 'flatten#0'"),
        (lambda: _plan(Flatten(name="input", inputs=("input",))), "two values are named 'input'"),
        (lambda: _plan(LINEAR, FLATTEN), "'fc' reads 'flatten#0', which no earlier operation makes"),
        (lambda: _plan(Relu(name="relu#0", inputs=("relu#0",))), "reads 'relu#0', which no earlier"),
        (lambda: _plan(Relu(name="relu#0", inputs=("input",))), r"the last operation 'relu#0' makes maps \(1, 4, 4\)"),
        (lambda: _plan(FLATTEN), "the network has no weights to train"),
        (lambda: _plan(FLATTEN, LINEAR, input_shape=(4, 4)), "the input shape must be"),
        (lambda: _plan(FLATTEN, LINEAR, input_shape=(1, 4, 4097)), "each 1..4096"),
        (lambda: _plan(FLATTEN, LINEAR, input_shape=(0, 4, 4)), "each 1..4096"),
        (lambda: _plan(FLATTEN, LINEAR, input_shape=(4096, 4096, 4096)), "more than 268435456 elements"),
        (lambda: _plan(FLATTEN, LINEAR, input_shape=(1.5, 4, 4)), r"`\$.input_shape\[0\]`"),  # type: ignore[arg-type]
        (lambda: _plan(FLATTEN, Linear(name="fc", inputs=("flatten#0",), out_features=0)), "out_features"),
        (lambda: _plan(FLATTEN, Linear(name="fc\n", inputs=("flatten#0",), out_features=1)), "name"),
        (lambda: _plan(FLATTEN, Linear(name="f c", inputs=("flatten#0",), out_features=1)), "name"),
        (lambda: _plan(FLATTEN, Linear(name="f" * 129, inputs=("flatten#0",), out_features=1)), "name"),
        (lambda: _plan(FLATTEN, Linear(name="fc", inputs=(), out_features=1)), "inputs"),
        (lambda: _plan(object()), "the plan is not valid: <object"),  # type: ignore[arg-type]
        (lambda: _plan(Conv2d(name="c", inputs=("input",), out_channels=1, kernel=(257, 1))), "kernel"),
        (lambda: _plan(Conv2d(name="c", inputs=("input",), out_channels=65537, kernel=(1, 1))), "out_channels"),
        (lambda: _plan(MaxPool(name="p", inputs=("input",), kernel=(2, 2), stride=(0, 1))), "stride"),
        (lambda: _plan(BatchNorm(name="b", inputs=("input",), epsilon=0.0)), "epsilon"),
        (lambda: _plan(Add(name="a", inputs=("input",))), "takes 2 inputs"),
        (lambda: _small(preprocessing=Preprocessing(mean=(0.5,))), "mean has 1 numbers for 2 input channels"),
        (lambda: _small(preprocessing=Preprocessing(std=(1.0,) * 3)), "std has 3 numbers for 2 input channels"),
        (lambda: _small(preprocessing=Preprocessing(std=(1.0, 0.0))), r"preprocessing.std\[1\]"),
        (lambda: _small(preprocessing=Preprocessing(mean=(float("nan"), 0.0))), r"preprocessing.mean\[0\]"),
        (lambda: _small(preprocessing=Preprocessing(crop_padding=65)), "crop_padding"),
    ],
)
def test_a_plan_says_what_is_wrong_with_it(make: Callable[[], Plan], complaint: str) -> None:
    with pytest.raises(NetworkError, match=complaint):
        make()


def test_the_class_scores_are_the_value_added_last() -> None:
    builder = PlanBuilder((1, 4, 4))
    with pytest.raises(NetworkError, match="must be the value that was added last"):
        builder.finish(builder.input)
    value = builder.flatten(builder.input)
    builder.linear("fc", value, 2)
    with pytest.raises(NetworkError, match="'flatten#0' must be the value that was added last"):
        builder.finish(value)


def test_weights_have_a_cap_all_together() -> None:
    operations = (
        FLATTEN,
        Linear(name="fc", inputs=("flatten#0",), out_features=65536),
        Linear(name="out", inputs=("fc",), out_features=4096),
    )
    with pytest.raises(NetworkError, match="more than 268435456 weights"):
        _plan(*operations)


def test_filter_groups_have_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distreal_edge.network.plan.MAXIMUM_GROUPS", 1)
    builder = PlanBuilder((1, 4, 4))
    value = builder.conv2d("first", builder.input, 2, kernel=1)
    assert len(builder.finish(builder.linear("fc", builder.flatten(value), 2)).groups) == 1
    builder = PlanBuilder((1, 4, 4))
    value = builder.conv2d("second", builder.conv2d("first", builder.input, 2, kernel=1), 2, kernel=1)
    with pytest.raises(NetworkError, match="the network has 2 filter groups, more than 1"):
        builder.finish(builder.linear("fc", builder.flatten(value), 2))
