"""However an author spells an operation, the plan is the same; and the plan computes what the module computes."""

from __future__ import annotations

import logging
import operator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distreal_edge.engine import Engine
from distreal_edge.network import Network, PlanBuilder, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.network import Plan

SHAPE = (3, 8, 8)


class Module(nn.Module):
    """Two convolutions of 4 filters whose outputs `apply` turns into one value, then a head."""

    def __init__(self, apply: Callable[..., Tensor], features: int = 4, pool: bool = True, **parts: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(3, 4, 3, padding=1)
        for name, part in parts.items():
            self.add_module(name, part)
        self.apply_to = apply
        self.pool = pool
        self.fc = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.apply_to(self, self.a(x), self.b(x))
        if self.pool:
            x = torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)
        return self.fc(x)


def trace(apply: Callable[..., Tensor], features: int = 4, pool: bool = True, **parts: nn.Module) -> Plan:
    return Network.from_torch(Module(apply, features, pool, **parts), SHAPE).plan


def operations(plan: Plan) -> list[str]:
    return [operation.name for operation in plan.operations]


SPELLINGS: dict[str, tuple[list[str], list[Callable[..., Tensor]]]] = {
    "relu": (
        ["a", "relu#0"],
        [
            lambda m, a, b: nn.functional.relu(a),
            lambda m, a, b: functional.relu(a, inplace=True),
            lambda m, a, b: functional.relu(a, True),
            lambda m, a, b: functional.relu(input=a),
            lambda m, a, b: functional.relu_(a),
            lambda m, a, b: torch.relu(a),
            lambda m, a, b: torch.relu_(a),
            lambda m, a, b: a.relu(),
            lambda m, a, b: a.relu_(),
        ],
    ),
    "relu6": (
        ["a", "relu6#0"],
        [lambda m, a, b: functional.relu6(a), lambda m, a, b: functional.relu6(a, inplace=True)],
    ),
    "hardswish": (["a", "hardswish#0"], [lambda m, a, b: functional.hardswish(a)]),
    "sigmoid": (
        ["a", "sigmoid#0"],
        [
            lambda m, a, b: torch.sigmoid(a),
            lambda m, a, b: a.sigmoid(),
            lambda m, a, b: functional.sigmoid(a),
            lambda m, a, b: a.sigmoid_(),
        ],
    ),
    "add": (
        ["a", "b", "add#0"],
        [
            lambda m, a, b: a + b,
            lambda m, a, b: torch.add(a, b),
            lambda m, a, b: torch.add(a, other=b),
            lambda m, a, b: a.add(b),
            lambda m, a, b: a.add_(b),
            lambda m, a, b: operator.iadd(a, b),
        ],
    ),
    "multiply": (
        ["a", "b", "multiply#0"],
        [
            lambda m, a, b: a * b,
            lambda m, a, b: torch.mul(a, b),
            lambda m, a, b: a.mul(b),
            lambda m, a, b: a.multiply(b),
        ],
    ),
    "max_pool": (
        ["a", "max_pool#0"],
        [
            lambda m, a, b: functional.max_pool2d(a, 2),
            lambda m, a, b: functional.max_pool2d(a, (2, 2), stride=2),
            lambda m, a, b: functional.max_pool2d(a, kernel_size=2, stride=(2, 2), padding=0),
            lambda m, a, b: torch.max_pool2d(a, 2),
        ],
    ),
    "avg_pool": (
        ["a", "avg_pool#0"],
        [
            lambda m, a, b: functional.avg_pool2d(a, 2),
            lambda m, a, b: functional.avg_pool2d(a, 2, 2, 0),
            lambda m, a, b: functional.adaptive_avg_pool2d(a, 4),
            lambda m, a, b: functional.adaptive_avg_pool2d(a, (4, 4)),
        ],
    ),
    "dropout": (
        ["a", "dropout#0"],
        [
            lambda m, a, b: functional.dropout(a, 0.5),
            lambda m, a, b: functional.dropout(a),
            lambda m, a, b: functional.dropout(a, p=0.5, training=m.training),
            lambda m, a, b: torch.dropout(a, 0.5, True),
        ],
    ),
    "nothing": (
        ["a"],
        [
            lambda m, a, b: a,
            lambda m, a, b: a.contiguous(),
            lambda m, a, b: a.clone(),
            lambda m, a, b: torch.cat([a], 1),
            lambda m, a, b: functional.dropout(a, 0.0),
            lambda m, a, b: functional.dropout(a, 0.5, training=False),
            lambda m, a, b: functional.adaptive_avg_pool2d(a, (8, None)),
            lambda m, a, b: a.view(a.size(0), 4, 8, 8),
        ],
    ),
}


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind, (_, forms) in SPELLINGS.items() for number in range(len(forms))]
)
def test_every_spelling_of_an_operation_makes_the_same_plan(kind: str, number: int) -> None:
    names, forms = SPELLINGS[kind]
    plan = trace(forms[number])
    assert operations(plan) == [*names, "global_avg_pool#0", "flatten#0", "fc"]
    assert plan == trace(forms[0])


CONCATENATIONS: list[Callable[..., Tensor]] = [
    lambda m, a, b: torch.cat([a, b], 1),
    lambda m, a, b: torch.cat((a, b), dim=1),
    lambda m, a, b: torch.cat(tensors=[a, b], dim=-3),
    lambda m, a, b: torch.concat([a, b], 1),
    lambda m, a, b: torch.concatenate([a, b], 1),
]


@pytest.mark.parametrize("form", CONCATENATIONS)
def test_every_spelling_of_a_concatenation_makes_the_same_plan(form: Callable[..., Tensor]) -> None:
    plan = trace(form, features=8)
    assert operations(plan)[:3] == ["a", "b", "concat#0"]
    assert plan.shapes["concat#0"] == (8, 8, 8)


def view_of_unpacked_shape(_module: nn.Module, a: Tensor, _b: Tensor) -> Tensor:
    batch, channels, height, width = a.shape
    return a.view(batch, channels * height * width)


FLATTENS: list[Callable[..., Tensor]] = [
    lambda m, a, b: torch.flatten(a, 1),
    lambda m, a, b: torch.flatten(a, start_dim=1, end_dim=-1),
    lambda m, a, b: torch.flatten(a, -3, 3),
    lambda m, a, b: a.flatten(1),
    lambda m, a, b: a.flatten(start_dim=1).flatten(1),
    lambda m, a, b: a.view(a.size(0), -1),
    lambda m, a, b: a.view(a.shape[0], -1),
    lambda m, a, b: a.view(a.size()[0], a.size(1) * 64),
    lambda m, a, b: a.view(-1, 4 * 8 * 8),
    lambda m, a, b: a.contiguous().view((a.size(0), 256)),
    lambda m, a, b: a.reshape(-1, 256),
    lambda m, a, b: torch.reshape(a, (a.size(0), -1)),
    view_of_unpacked_shape,
]


@pytest.mark.parametrize("form", FLATTENS)
def test_every_spelling_of_a_flatten_makes_the_same_plan(form: Callable[..., Tensor]) -> None:
    plan = trace(form, features=256, pool=False)
    assert operations(plan) == ["a", "flatten#0", "fc"]


GLOBAL_MEANS: list[Callable[..., Tensor]] = [
    lambda m, a, b: a.mean((2, 3)),
    lambda m, a, b: a.mean([-1, -2]),
    lambda m, a, b: a.mean(dim=(2, 3), keepdim=True).flatten(1),
    lambda m, a, b: torch.mean(a, dim=(2, 3)),
    lambda m, a, b: functional.adaptive_avg_pool2d(a, (1, 1)).view(-1, 4),
    lambda m, a, b: nn.AdaptiveAvgPool2d(1)(a).reshape(a.size(0), -1),
]


@pytest.mark.parametrize("form", GLOBAL_MEANS)
def test_every_spelling_of_a_mean_over_the_map_makes_the_same_plan(form: Callable[..., Tensor]) -> None:
    assert operations(trace(form, pool=False)) == ["a", "global_avg_pool#0", "flatten#0", "fc"]


MODULES: list[tuple[nn.Module, list[str]]] = [
    (nn.ReLU(), ["relu#0"]),
    (nn.ReLU(inplace=True), ["relu#0"]),
    (nn.ReLU6(), ["relu6#0"]),
    (nn.Hardswish(), ["hardswish#0"]),
    (nn.Sigmoid(), ["sigmoid#0"]),
    (nn.MaxPool2d(3, 2, 1), ["max_pool#0"]),
    (nn.AvgPool2d(2, padding=1, count_include_pad=False), ["avg_pool#0"]),
    (nn.AdaptiveAvgPool2d(2), ["avg_pool#0"]),
    (nn.Dropout(0.25), ["dropout#0"]),
    (nn.Dropout(0.0), []),
    (nn.Identity(), []),
    (nn.Identity(1, unused="arguments"), []),
    (nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), ["part"]),
    (nn.Conv2d(4, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 1)), ["part"]),
    (nn.Conv2d(4, 4, (3, 5), padding="same", dilation=2), ["part"]),
    (nn.Conv2d(4, 4, 3, padding="valid", groups=2), ["part"]),
    (nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential()), ["relu#0"]),
]


@pytest.mark.parametrize("number", range(len(MODULES)))
def test_a_module_becomes_its_operation_and_computes_the_same(number: int) -> None:
    part, names = MODULES[number]
    module = Module(lambda m, a, b: m.part(a), part=part)
    network = Network.from_torch(module, SHAPE)
    assert operations(network.plan) == ["a", *names, "global_avg_pool#0", "flatten#0", "fc"]
    assert_same_scores(module, network)


def assert_same_scores(module: nn.Module, network: Network) -> None:
    images = np.random.default_rng(0).random((3, *network.plan.input_shape), dtype=np.float32)
    module.eval()
    # In-place operations must not reach the images themselves.
    expected = module(torch.from_numpy(images.copy())).detach().numpy()
    np.testing.assert_allclose(Engine(network).predict(images), expected, rtol=1e-5, atol=1e-5)


def test_every_field_of_a_module_reaches_its_operation() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=3, bias=False),
        nn.BatchNorm2d(6, eps=1e-3, momentum=0.25),
        nn.MaxPool2d((2, 3), stride=(1, 2), padding=(0, 1)),
        nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(6 * 4 * 6, 4, bias=False),
        nn.BatchNorm1d(4),
        nn.Linear(4, 2),
    )
    builder = PlanBuilder((3, 9, 9))
    value = builder.conv2d(
        "0", "input", 6, kernel=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=3, bias=False
    )
    value = builder.batch_norm("1", value, epsilon=1e-3, momentum=0.25)
    value = builder.max_pool(value, kernel=(2, 3), stride=(1, 2), padding=(0, 1))
    value = builder.avg_pool(value, kernel=2, stride=1, padding=1, count_include_pad=False)
    value = builder.flatten(builder.dropout(value, 0.3))
    value = builder.batch_norm("7", builder.linear("6", value, 4, bias=False))
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3))
    expected = builder.finish(builder.linear("8", value, 2), rescale=True, preprocessing=preprocessing)
    assert Network.from_torch(module, (3, 9, 9), rescale=True, preprocessing=preprocessing).plan == expected


def test_a_network_rescales_on_its_own_accord_only_without_batch_norm() -> None:
    assert trace(lambda m, a, b: a).rescale
    assert not trace(lambda m, a, b: m.norm(a), norm=nn.BatchNorm2d(4)).rescale


def in_place_residual(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    identity = a
    a += b
    return a * identity  # the sum, squared


def in_place_product(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    identity = a
    a *= b
    return a + identity


def result_thrown_away(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    m.act(a)
    functional.relu_(b)
    return a + b


def read_before_and_after(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    kept = a.clone()
    product = a * b
    m.act(a)
    return a * kept + product


def written_twice(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    first = a
    a += b
    second = a
    m.act(a)
    return first * b + second


def copied_by_pooling_and_joining(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    pooled = functional.adaptive_avg_pool2d(a, (8, 8))
    joined = torch.cat([b], 1)
    m.act(a)
    m.act(b)
    return a + pooled + b + joined


def through_dropout_that_drops_nothing(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    same = functional.dropout(a, 0.0)
    m.act(same)
    return a + b


def through_an_identity(m: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    same = nn.functional.dropout(a, 0.5, training=False, inplace=True).contiguous()
    m.act(same)
    return a + b


@pytest.mark.parametrize(
    "form",
    [
        in_place_residual,
        in_place_product,
        result_thrown_away,
        read_before_and_after,
        written_twice,
        copied_by_pooling_and_joining,
        through_dropout_that_drops_nothing,
        through_an_identity,
    ],
)
def test_what_is_written_in_place_changes_under_all_its_names(form: Callable[..., Tensor]) -> None:
    module = Module(form, act=nn.ReLU(inplace=True))
    with torch.no_grad():
        assert_same_scores(module, Network.from_torch(module, SHAPE))


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.unused = nn.Conv2d(4, 4, 3)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        if mask is not None:
            x = x * mask
        if scale != 1.0:
            x = x * scale
        x = self.conv(x)
        functional.gelu(self.unused(x))
        x.sum()
        return self.head(x)


def test_what_the_class_scores_do_not_depend_on_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    module = Stream()
    with caplog.at_level(logging.WARNING):
        network = Network.from_torch(module, SHAPE)
    assert operations(network.plan) == ["conv", "global_avg_pool#0", "flatten#0", "head.2"]
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 tensors of the module have no part in its class scores and are left out (unused.weight, unused.bias): "
        "load_state_dict will need strict=False"
    )
    missing, unexpected = module.load_state_dict(network.to_state_dict(), strict=False)
    assert (missing, unexpected) == (["unused.weight", "unused.bias"], [])


class Custom(nn.Conv2d):
    """A subclass that computes the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)


def test_a_subclass_that_computes_the_same_counts_as_its_base() -> None:
    assert operations(trace(lambda m, a, b: m.part(a), part=Custom(4)))[:2] == ["a", "part"]


class Restless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.fc = nn.Linear(4, 2)
        self.calls = 0
        self.body[1].eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = x
        self.register_buffer("noise", torch.ones(1))
        x + torch.ones(1)  # torch.fx keeps such constants in the module
        return self.fc(self.body(x).mean((2, 3)))


def test_tracing_leaves_the_module_as_it_was() -> None:
    module = Restless().train()
    module.body.eval()
    module.body[0].train()
    attributes = [(part, dict(vars(part))) for part in module.modules()]
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    network = Network.from_torch(module, SHAPE)
    assert [(part, dict(vars(part))) for part in module.modules()] == attributes
    assert list(module.state_dict()) == list(state)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in state.items())
    network.weights["fc.weight"][...] = 7.0
    assert torch.equal(module.fc.weight, state["fc.weight"])


def test_the_plan_is_that_of_training_whatever_mode_the_module_is_in() -> None:
    module = Module(lambda m, a, b: functional.dropout(a, 0.5, training=m.training))
    training = Network.from_torch(module.train(), SHAPE)
    assert "dropout#0" in operations(training.plan)
    assert Network.from_torch(module.eval(), SHAPE).plan == training.plan


def test_tracing_works_under_no_grad_and_twice() -> None:
    module = Restless()
    with torch.no_grad():
        first = Network.from_torch(module, SHAPE)
    assert Network.from_torch(module, SHAPE).digest == first.digest


def test_to_state_dict_gives_tensors_of_its_own_and_a_counter_for_every_batch_norm() -> None:
    module = Restless()
    network = Network.from_torch(module, SHAPE)
    tensors = network.to_state_dict()
    assert list(tensors) == [*network.weights, "body.1.num_batches_tracked"]
    assert tensors["body.1.num_batches_tracked"].dtype == torch.int64
    tensors["fc.weight"].fill_(7.0)
    assert not np.any(network.weights["fc.weight"] == 7.0)
    module.load_state_dict(tensors, strict=True)


def test_weights_in_another_memory_format_are_copied_in_order() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).to(memory_format=torch.channels_last)
    weight = Network.from_torch(module, SHAPE).weights["0.weight"]
    assert weight.flags.c_contiguous
    np.testing.assert_array_equal(weight, module[0].weight.detach().numpy())
