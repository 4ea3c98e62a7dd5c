"""A step over a subset is PyTorch's step on the smaller network, which is written out here by hand.

Each case is a full plan, a module that takes its numbers of channels, and for every tensor the rows and columns that
survive, as a person would write them down. Everything is compared in float64: loss, weights, momentum; what lies
outside must keep every bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from distreal_edge import Network, Plan, PlanBuilder, Subset
from distreal_edge.network.reference import ReferenceExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.8, 0.01
EVERY_CLASS = np.arange(5)
RGB = np.arange(3)


@dataclass(frozen=True)
class Case:
    """`sizes` are the filter groups a person finds; `small` makes the module and the axes of its tensors."""

    plan: Plan
    sizes: tuple[int, ...]
    small: Callable[..., tuple[nn.Module, dict[str, tuple[Any, ...]]]]


# A residual network: the stream is one group, the inside of the block another.


def residual_plan() -> Plan:
    b = PlanBuilder((3, 6, 5))
    x = b.relu(b.batch_norm("bn1", b.conv2d("conv1", b.input, 7, kernel=3, padding=1, bias=False)))
    y = b.relu(b.batch_norm("bn2", b.conv2d("conv2", x, 6, kernel=3, padding=1, bias=False)))
    y = b.batch_norm("bn3", b.conv2d("conv3", y, 7, kernel=3, padding=1, bias=False))
    x = b.relu(b.add(x, y))
    return b.finish(b.linear("fc", b.flatten(b.global_avg_pool(x)), 5))


class Residual(nn.Module):
    def __init__(self, stream: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stream, 3, padding=1, bias=False), nn.BatchNorm2d(stream)
        self.conv2, self.bn2 = nn.Conv2d(stream, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, stream, 3, padding=1, bias=False), nn.BatchNorm2d(stream)
        self.fc = nn.Linear(stream, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x))))))
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


def small_residual(stream: Any, inner: Any) -> tuple[nn.Module, dict[str, tuple[Any, ...]]]:
    return Residual(len(stream), len(inner)), {
        "conv1.weight": (stream, RGB),
        "bn1.weight": (stream,),
        "bn1.bias": (stream,),
        "conv2.weight": (inner, stream),
        "bn2.weight": (inner,),
        "bn2.bias": (inner,),
        "conv3.weight": (stream, inner),
        "bn3.weight": (stream,),
        "bn3.bias": (stream,),
        "fc.weight": (EVERY_CLASS, stream),
        "fc.bias": (EVERY_CLASS,),
    }


# A dense network: concatenations keep their parts by offset.


def dense_plan() -> Plan:
    b = PlanBuilder((3, 6, 5))
    first = b.conv2d("conv1", b.input, 4, kernel=3, padding=1)
    second = b.conv2d("conv2", b.relu(b.batch_norm("bn2", first)), 3, kernel=3, padding=1, bias=False)
    joined = b.concat(first, second)
    third = b.conv2d("conv3", b.relu(b.batch_norm("bn3", joined)), 5, kernel=1, bias=False)
    joined = b.relu(b.batch_norm("bn4", b.concat(joined, third)))
    return b.finish(b.linear("fc", b.flatten(b.max_pool(joined, kernel=3)), 5))


class Dense(nn.Module):
    def __init__(self, one: int, two: int, three: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, one, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(one), nn.Conv2d(one, two, 3, padding=1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(one + two), nn.Conv2d(one + two, three, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(one + two + three)
        self.fc = nn.Linear((one + two + three) * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        x = torch.cat([x, self.conv3(F.relu(self.bn3(x)))], 1)
        scores: Tensor = self.fc(F.max_pool2d(F.relu(self.bn4(x)), 3).flatten(1))
        return scores


def small_dense(one: Any, two: Any, three: Any) -> tuple[nn.Module, dict[str, tuple[Any, ...]]]:
    both = np.concatenate([one, 4 + two])
    all_three = np.concatenate([one, 4 + two, 7 + three])
    pixels = np.concatenate([[2 * channel, 2 * channel + 1] for channel in all_three])  # maps of 2x1 at the end
    return Dense(len(one), len(two), len(three)), {
        "conv1.weight": (one, RGB),
        "conv1.bias": (one,),
        "bn2.weight": (one,),
        "bn2.bias": (one,),
        "conv2.weight": (two, one),
        "bn3.weight": (both,),
        "bn3.bias": (both,),
        "conv3.weight": (three, both),
        "bn4.weight": (all_three,),
        "bn4.bias": (all_three,),
        "fc.weight": (EVERY_CLASS, pixels),
        "fc.bias": (EVERY_CLASS,),
    }


# A depthwise convolution with two filters for each channel that it reads: both follow their producer.


def depthwise_plan() -> Plan:
    b = PlanBuilder((3, 6, 5))
    x = b.relu6(b.batch_norm("bn1", b.conv2d("conv1", b.input, 6, kernel=1, bias=False)))
    x = b.relu6(b.batch_norm("bn2", b.conv2d("deep", x, 12, kernel=3, stride=2, padding=1, groups=6)))
    x = b.hardswish(b.batch_norm("bn3", b.conv2d("conv3", x, 5, kernel=1)))
    return b.finish(b.linear("fc", b.flatten(b.global_avg_pool(x)), 5))


class Depthwise(nn.Module):
    def __init__(self, one: int, three: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, one, 1, bias=False), nn.BatchNorm2d(one)
        self.deep, self.bn2 = nn.Conv2d(one, 2 * one, 3, stride=2, padding=1, groups=one), nn.BatchNorm2d(2 * one)
        self.conv3, self.bn3 = nn.Conv2d(2 * one, three, 1), nn.BatchNorm2d(three)
        self.fc = nn.Linear(three, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn2(self.deep(F.relu6(self.bn1(self.conv1(x))))))
        scores: Tensor = self.fc(F.hardswish(self.bn3(self.conv3(x))).mean((2, 3)))
        return scores


def small_depthwise(one: Any, three: Any) -> tuple[nn.Module, dict[str, tuple[Any, ...]]]:
    pairs = np.sort(np.concatenate([2 * one, 2 * one + 1]))
    return Depthwise(len(one), len(three)), {
        "conv1.weight": (one, RGB),
        "bn1.weight": (one,),
        "bn1.bias": (one,),
        "deep.weight": (pairs, [0]),
        "deep.bias": (pairs,),
        "bn2.weight": (pairs,),
        "bn2.bias": (pairs,),
        "conv3.weight": (three, pairs),
        "conv3.bias": (three,),
        "bn3.weight": (three,),
        "bn3.bias": (three,),
        "fc.weight": (EVERY_CLASS, three),
        "fc.bias": (EVERY_CLASS,),
    }


# Squeeze and excite: the factors follow the maps that they multiply.


def squeeze_plan() -> Plan:
    b = PlanBuilder((3, 6, 5))
    x = b.relu(b.batch_norm("bn1", b.conv2d("conv1", b.input, 6, kernel=3)))
    factor = b.relu(b.conv2d("squeeze", b.global_avg_pool(x), 3, kernel=1))
    factor = b.sigmoid(b.conv2d("excite", factor, 6, kernel=1))
    x = b.avg_pool(b.multiply(x, factor), kernel=2, stride=1, padding=1)
    return b.finish(b.linear("fc", b.flatten(x), 5))


class Squeeze(nn.Module):
    def __init__(self, maps: int, squeezed: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, maps, 3), nn.BatchNorm2d(maps)
        self.squeeze, self.excite = nn.Conv2d(maps, squeezed, 1), nn.Conv2d(squeezed, maps, 1)
        self.fc = nn.Linear(maps * 20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        scores: Tensor = self.fc(F.avg_pool2d(x, 2, 1, 1).flatten(1))
        return scores


def small_squeeze(maps: Any, squeezed: Any) -> tuple[nn.Module, dict[str, tuple[Any, ...]]]:
    pixels = np.concatenate([20 * channel + np.arange(20) for channel in maps])  # maps of 5x4 at the end
    return Squeeze(len(maps), len(squeezed)), {
        "conv1.weight": (maps, RGB),
        "conv1.bias": (maps,),
        "bn1.weight": (maps,),
        "bn1.bias": (maps,),
        "squeeze.weight": (squeezed, maps),
        "squeeze.bias": (squeezed,),
        "excite.weight": (maps, squeezed),
        "excite.bias": (maps,),
        "fc.weight": (EVERY_CLASS, pixels),
        "fc.bias": (EVERY_CLASS,),
    }


# No batch norm: every layer multiplies what it reads by the inverse share, before its sum.


def flat_plan() -> Plan:
    b = PlanBuilder((3, 6, 5))
    x = b.max_pool(b.relu(b.conv2d("conv1", b.input, 8, kernel=3, padding=1)), kernel=2)
    x = b.relu(b.conv2d("conv2", x, 6, kernel=2, dilation=(2, 1)))
    x = b.relu(b.linear("fc1", b.flatten(x), 9))
    return b.finish(b.linear("fc2", x, 5))


class Flat(nn.Module):
    def __init__(self, one: int, two: int) -> None:
        super().__init__()
        self.shares = (one / 8, two / 6)
        self.conv1, self.conv2 = nn.Conv2d(3, one, 3, padding=1), nn.Conv2d(one, two, 2, dilation=(2, 1))
        self.fc1, self.fc2 = nn.Linear(two, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x / self.shares[0]))
        scores: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1) / self.shares[1])))
        return scores


def small_flat(one: Any, two: Any) -> tuple[nn.Module, dict[str, tuple[Any, ...]]]:
    return Flat(len(one), len(two)), {
        "conv1.weight": (one, RGB),
        "conv1.bias": (one,),
        "conv2.weight": (two, one),
        "conv2.bias": (two,),
        "fc1.weight": (np.arange(9), two),  # maps of 1x1 at the end
        "fc1.bias": (np.arange(9),),
        "fc2.weight": (EVERY_CLASS, np.arange(9)),
        "fc2.bias": (EVERY_CLASS,),
    }


CASES = {
    "residual": Case(residual_plan(), (7, 6), small_residual),
    "dense": Case(dense_plan(), (4, 3, 5), small_dense),
    "depthwise": Case(depthwise_plan(), (6, 5), small_depthwise),
    "squeeze-excite": Case(squeeze_plan(), (6, 3), small_squeeze),
    "flatten, rescaled": Case(flat_plan(), (8, 6), small_flat),
}


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_pytorchs_on_the_smaller_network(
    name: str, shuffled: Callable[..., Network], draw_batch: Any, draw_subset: Any
) -> None:
    case = CASES[name]
    assert case.plan.sizes == case.sizes
    executor = ReferenceExecutor(case.plan, shuffled(case.plan, 1).weights, torch.float64)
    rng = np.random.default_rng(5)
    for seed in range(25):  # the momentum of earlier subsets meets later ones
        subset = draw_subset(case.plan, rng)
        images, labels = draw_batch(case.plan, 6, seed)
        module, axes = case.small(*subset.survivors)
        assert set(axes) == set(case.plan.parameters)
        _check_step(executor, subset, images, labels, module.double(), axes)


# A grouped convolution whose two conv-groups keep different numbers: two convolutions side by side.


class SideBySide(nn.Module):
    def __init__(self, left: Any, right: Any, one: int, three: int) -> None:
        super().__init__()
        self.lefts, self.rights = left, right  # inputs and outputs of each
        self.conv1 = nn.Conv2d(3, one, 3, padding=1)
        self.left, self.right = self._conv(*left), self._conv(*right)
        self.left_bias, self.right_bias = nn.Parameter(torch.zeros(left[1])), nn.Parameter(torch.zeros(right[1]))
        self.bn, self.conv3 = nn.BatchNorm2d(left[1] + right[1]), nn.Conv2d(left[1] + right[1], three, 1)
        self.fc = nn.Linear(three, 5)

    @staticmethod
    def _conv(inputs: int, outputs: int) -> nn.Module | None:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False) if inputs and outputs else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x, y = x[:, : self.lefts[0]], x[:, self.lefts[0] :]
        n, _, height, width = x.shape
        left = self.left(x) if self.left else torch.zeros(n, self.lefts[1], height, width, dtype=x.dtype)
        right = self.right(y) if self.right else torch.zeros(n, self.rights[1], height, width, dtype=x.dtype)
        x = torch.cat([left + self.left_bias[:, None, None], right + self.right_bias[:, None, None]], 1)
        scores: Tensor = self.fc(F.relu(self.conv3(F.relu(self.bn(x)))).mean((2, 3)))
        return scores


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param([0, 2, 5, 6], [1, 4, 5, 7], id="unequal"),
        pytest.param([1, 2, 4, 5], [0, 1, 4, 7], id="equal"),
        pytest.param([4, 5], [0, 2, 3, 6], id="left reads nothing"),
        pytest.param([0, 3, 4], [5, 6, 7], id="left makes nothing"),
        pytest.param([0, 1, 2, 3], [4, 7], id="right reads nothing, left makes nothing"),
        pytest.param([0, 1, 2, 3], [0, 1, 2, 3], id="left is whole, right is gone"),
    ],
)
def test_conv_groups_that_keep_unequal_numbers_are_convolutions_side_by_side(
    one: list[int], two: list[int], shuffled: Callable[..., Network], draw_batch: Any
) -> None:
    b = PlanBuilder((3, 6, 5))
    x = b.conv2d("grouped", b.conv2d("conv1", b.input, 8, kernel=3, padding=1), 8, kernel=3, padding=1, groups=2)
    x = b.relu(b.conv2d("conv3", b.relu(b.batch_norm("bn", x)), 4, kernel=1))
    plan = b.finish(b.linear("fc", b.flatten(b.global_avg_pool(x)), 5))
    assert plan.sizes == (8, 8, 4)
    three = np.array([0, 1, 3])
    subset = Subset((np.array(one), np.array(two), three))
    left = (np.array([i for i in one if i < 4]), np.array([i for i in two if i < 4], dtype=np.int64))
    right = (np.array([i - 4 for i in one if i >= 4]), np.array([i for i in two if i >= 4], dtype=np.int64))
    sizes = [tuple(len(axis) for axis in side) for side in (left, right)]
    module = SideBySide(*sizes, len(one), 3).double()
    axes = {
        "conv1.weight": (np.array(one), RGB),
        "conv1.bias": (np.array(one),),
        "grouped.weight": {"left.weight": (left[1], left[0]), "right.weight": (right[1], right[0])},
        "grouped.bias": {"left_bias": (left[1],), "right_bias": (right[1],)},
        "bn.weight": (np.array(two),),
        "bn.bias": (np.array(two),),
        "conv3.weight": (three, np.array(two)),
        "conv3.bias": (three,),
        "fc.weight": (EVERY_CLASS, three),
        "fc.bias": (EVERY_CLASS,),
    }
    executor = ReferenceExecutor(plan, shuffled(plan, 2).weights, torch.float64)
    for seed in range(3):
        images, labels = draw_batch(plan, 6, seed)
        _check_step(executor, subset, images, labels, module, axes)


def _check_step(
    executor: ReferenceExecutor, subset: Subset, images: Any, labels: Any, module: nn.Module, axes: dict[str, Any]
) -> None:
    """Do one step with both, from the executor's weights and momentum, and compare all that there is."""
    parameters = dict(module.named_parameters())
    blocks = [  # tensor of the full network, parameter of the small one, where it lies
        (name, part, np.ix_(*where))
        for name, places in axes.items()
        for part, where in (places.items() if isinstance(places, dict) else [(name, places)])
        if part in parameters
    ]
    assert {part for _, part, _ in blocks} == set(parameters)
    before = {name: tensor.clone() for name, tensor in executor.weights.items()}
    momentum_before = {name: tensor.clone() for name, tensor in executor.momentum.items()}
    optimiser = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    with torch.no_grad():
        for name, part, where in blocks:
            parameters[part].copy_(before[name][where])
            optimiser.state[parameters[part]]["momentum_buffer"] = momentum_before[name][where].clone()

    loss = executor.step(images, labels, subset, LR, MOMENTUM, WEIGHT_DECAY, np.random.default_rng(0))
    module.zero_grad()
    expected = F.cross_entropy(module.train()(torch.from_numpy(images).double()), torch.from_numpy(labels))
    expected.backward()
    optimiser.step()

    assert loss == pytest.approx(expected.item(), rel=1e-10)
    for name in executor.plan.parameters:
        inside = np.zeros(before[name].shape, dtype=bool)
        for owner, part, where in blocks:
            if owner == name:
                inside[where] = True
                small = parameters[part]
                torch.testing.assert_close(executor.weights[name][where], small.detach(), rtol=1e-9, atol=1e-12)
                buffer = optimiser.state[small]["momentum_buffer"]
                torch.testing.assert_close(executor.momentum[name][where], buffer, rtol=1e-8, atol=1e-12)
        outside = torch.from_numpy(~inside)
        assert torch.equal(executor.weights[name][outside], before[name][outside])
        assert torch.equal(executor.momentum[name][outside], momentum_before[name][outside])
    for name in executor.plan.statistics:
        assert torch.equal(executor.weights[name], before[name])
