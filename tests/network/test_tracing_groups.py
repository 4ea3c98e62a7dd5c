"""The filter groups of small modules are what a person writes down after drawing them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distreal_edge.network import Network, Plan

NEVER = -1


def convolution(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


class Head(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def plan_of(module: nn.Module, side: int = 4) -> Plan:
    return Network.from_torch(module, (2, side, side)).plan


def groups_of(plan: Plan) -> list[tuple[str, int]]:
    return [(group.name, group.filters) for group in plan.groups]


def filters_behind(plan: Plan, value: str) -> list[int]:
    return plan.layout.of[value].tolist()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(2, 4)
        self.norm = nn.BatchNorm2d(4)
        self.inner = convolution(4, 3)
        self.outer = convolution(3, 4)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(x)


def test_an_addition_ties_the_convolutions_that_meet_in_it() -> None:
    plan = plan_of(Residual())
    assert groups_of(plan) == [("stem", 4), ("inner", 3)]
    assert plan.group_offsets == (0, 4, 7)
    assert plan.layout.streams == {0}
    assert {value: filters_behind(plan, value) for value in plan.shapes} == {
        "input": [NEVER, NEVER],
        "stem": [0, 1, 2, 3],
        "norm": [0, 1, 2, 3],
        "relu#0": [0, 1, 2, 3],
        "inner": [4, 5, 6],
        "relu#1": [4, 5, 6],
        "outer": [0, 1, 2, 3],
        "add#0": [0, 1, 2, 3],
        "relu#2": [0, 1, 2, 3],
        "global_avg_pool#0": [0, 1, 2, 3],
        "flatten#0": [0, 1, 2, 3],
        "head.2": [NEVER, NEVER, NEVER],
    }


class ResidualToInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = convolution(2, 2)
        self.free = convolution(2, 3)
        self.head = Head(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.free(x + self.conv(x)))


def test_filters_that_are_added_to_the_images_are_never_dropped() -> None:
    plan = plan_of(ResidualToInput())
    assert groups_of(plan) == [("free", 3)]
    assert filters_behind(plan, "conv") == [NEVER, NEVER]
    assert filters_behind(plan, "free") == [0, 1, 2]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(2, 3)
        self.first = convolution(3, 2)
        self.norm = nn.BatchNorm2d(5)
        self.second = convolution(5, 2)
        self.head = Head(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(x)], dim=1)
        x = torch.cat([x, self.second(self.norm(x))], dim=1)
        return self.head(x)


def test_a_concatenation_keeps_the_groups_of_its_parts_by_offset() -> None:
    plan = plan_of(Dense())
    assert groups_of(plan) == [("stem", 3), ("first", 2), ("second", 2)]
    assert plan.layout.streams == frozenset()
    assert filters_behind(plan, "concat#0") == [0, 1, 2, 3, 4]
    assert filters_behind(plan, "norm") == [0, 1, 2, 3, 4]
    assert filters_behind(plan, "concat#1") == [0, 1, 2, 3, 4, 5, 6]
    weight = plan.parameters["second.weight"]
    assert weight.rows.tolist() == [[5, 6]]
    assert weight.columns is not None
    assert weight.columns.tolist() == [[0, 1, 2, 3, 4]]


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow = convolution(2, 2, kernel=1)
        self.wide = nn.Sequential(convolution(2, 3, kernel=1), nn.ReLU(), convolution(3, 2, kernel=5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(2, 1, kernel=1))
        self.classifier = nn.Linear(5 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.narrow(x), self.wide(x), self.pooled(x)), 1)
        return self.classifier(torch.flatten(x, 1))


def test_the_branches_of_an_inception_are_groups_and_a_flatten_spreads_them_over_columns() -> None:
    plan = plan_of(Inception())
    assert groups_of(plan) == [("narrow", 2), ("wide.0", 3), ("wide.2", 2), ("pooled.1", 1)]
    assert filters_behind(plan, "concat#0") == [0, 1, 5, 6, 7]
    pixels = 16
    columns = [0] * pixels + [1] * pixels + [5] * pixels + [6] * pixels + [7] * pixels
    assert filters_behind(plan, "flatten#0") == columns
    weight = plan.parameters["classifier.weight"]
    assert weight.columns is not None
    assert weight.columns.tolist() == [columns]
    assert weight.rows.tolist() == [[NEVER, NEVER, NEVER]]


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = convolution(2, 3, kernel=1)
        self.depthwise = convolution(3, 3, groups=3)
        self.doubling = convolution(3, 6, groups=3)
        self.project = convolution(6, 4, kernel=1)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.project(self.doubling(self.depthwise(self.expand(x)))))


def test_a_depthwise_convolution_follows_its_producer() -> None:
    plan = plan_of(Depthwise())
    assert groups_of(plan) == [("expand", 3), ("project", 4)]
    assert filters_behind(plan, "depthwise") == [0, 1, 2]
    assert filters_behind(plan, "doubling") == [0, 0, 1, 1, 2, 2]
    assert filters_behind(plan, "project") == [3, 4, 5, 6]


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = convolution(2, 4)
        self.squeeze = nn.Conv2d(4, 2, 1)
        self.excite = nn.Conv2d(2, 4, 1)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = x.mean((2, 3), keepdim=True)
        scale = torch.sigmoid(self.excite(torch.relu(self.squeeze(scale))))
        return self.head(x * scale)


def test_the_excitation_shares_the_group_that_it_scales() -> None:
    plan = plan_of(SqueezeExcite())
    assert groups_of(plan) == [("conv", 4), ("squeeze", 2)]
    assert plan.layout.streams == frozenset()
    assert filters_behind(plan, "global_avg_pool#0") == [0, 1, 2, 3]
    assert filters_behind(plan, "squeeze") == [4, 5]
    assert filters_behind(plan, "excite") == [0, 1, 2, 3]
    assert filters_behind(plan, "multiply#0") == [0, 1, 2, 3]


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = convolution(2, 16)
        self.b = convolution(2, 16)
        self.whole = convolution(2, 32)
        self.head = Head(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.whole(x) + torch.cat([self.a(x), self.b(x)], dim=1))


def test_a_convolution_that_is_added_to_two_parts_is_split_between_them() -> None:
    plan = plan_of(Split())
    assert groups_of(plan) == [("whole[0:16]", 16), ("whole[16:32]", 16)]
    assert filters_behind(plan, "whole") == list(range(32))
    assert filters_behind(plan, "a") == list(range(16))
    assert filters_behind(plan, "b") == list(range(16, 32))
    assert filters_behind(plan, "add#0") == list(range(32))
    assert plan.layout.streams == {0, 1}


class SplitLater(Split):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], dim=1) + self.whole(x))


def test_the_parts_name_the_groups_when_they_come_first() -> None:
    plan = plan_of(SplitLater())
    assert groups_of(plan) == [("a", 16), ("b", 16)]
    assert filters_behind(plan, "whole") == list(range(32))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = convolution(2, 4)
        self.grouped = convolution(4, 6, groups=2)
        self.head = Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.conv(x)))


def test_a_grouped_convolution_is_a_group_of_its_own_that_reads_its_part() -> None:
    plan = plan_of(Grouped())
    assert groups_of(plan) == [("conv", 4), ("grouped", 6)]
    weight = plan.parameters["grouped.weight"]
    assert weight.rows.tolist() == [[4, 5, 6], [7, 8, 9]]
    assert weight.columns is not None
    assert weight.columns.tolist() == [[0, 1], [2, 3]]
