"""Plans to test with: random ones, whose every operation can meet every other, and masks over their filters."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.dropout import Subset
from distreal_edge.network import PlanBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from distreal_edge.network import Plan

MapsShape = tuple[int, int, int]


class _RandomPlan:
    # Values that are maps, with their shapes, grow operation by operation; any may be read again later.

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        shape = (self.choose.choice([1, 2, 3, 4]), self.choose.randint(4, 7), self.choose.randint(4, 7))
        self.builder = PlanBuilder(shape)
        self.values: list[tuple[str, MapsShape]] = [("input", shape)]
        self.named = 0

    def build(self) -> Plan:
        steps = [self.conv, self.conv, self.plain, self.depthwise, self.grouped, self.add, self.concat, self.excite]
        self.conv()
        for _ in range(self.choose.randint(2, 14)):
            self.choose.choice([*steps, self.pool])()
        value, _ = self.values[-1]
        if self.choose.random() < 0.5:
            value = self.builder.global_avg_pool(value)
        value = self.builder.flatten(value)
        if self.choose.random() < 0.3:
            value = self.builder.batch_norm(self.name(), value)
        if self.choose.random() < 0.3:
            value = self.builder.relu(self.builder.linear(self.name(), value, 5))
        return self.builder.finish(self.builder.linear(self.name(), value, 3, bias=self.choose.random() < 0.5))

    def name(self) -> str:
        self.named += 1
        return f"layer{self.named}"

    def conv(self, value: str | None = None, shape: MapsShape | None = None, groups: int = 1, times: int = 0) -> None:
        if value is None or shape is None:
            value, shape = self.choose.choice(self.values)
        channels = times or self.choose.choice([1, 2, 3, 4, 4, 6])
        side = self.choose.choice([1, 3])
        stride = self.choose.choice([1, 1, 1, 2])
        made = self.builder.conv2d(
            self.name(),
            value,
            channels,
            kernel=side,
            padding=side // 2,
            stride=stride,
            groups=groups,
            bias=self.choose.random() < 0.5,
        )
        sides = tuple((extent - 1) // stride + 1 for extent in shape[1:])
        self.values.append((made, (channels, sides[0], sides[1])))

    def depthwise(self) -> None:
        value, shape = self.choose.choice(self.values)
        self.conv(value, shape, groups=shape[0], times=shape[0] * self.choose.choice([1, 1, 2]))

    def grouped(self) -> None:
        value, shape = self.choose.choice(self.values)
        groups = 2 if shape[0] % 2 == 0 else 1
        self.conv(value, shape, groups=groups, times=groups * self.choose.choice([1, 2, 3]))

    def plain(self) -> None:
        value, shape = self.choose.choice(self.values)
        makers = [self.builder.relu, self.builder.hardswish, lambda value: self.builder.batch_norm(self.name(), value)]
        self.values.append((self.choose.choice(makers)(value), shape))

    def pool(self) -> None:
        value, shape = self.choose.choice(self.values)
        if min(shape[1:]) >= 4:
            make = self.choose.choice([self.builder.max_pool, self.builder.avg_pool])
            self.values.append((make(value, kernel=2), (shape[0], shape[1] // 2, shape[2] // 2)))

    def pair(self, *, same: Callable[[MapsShape], object]) -> tuple[tuple[str, MapsShape], tuple[str, MapsShape]]:
        one = self.choose.choice(self.values)
        return one, self.choose.choice([value for value in self.values if same(value[1]) == same(one[1])])

    def add(self) -> None:
        (left, shape), (right, _) = self.pair(same=lambda shape: shape)
        self.values.append((self.builder.add(left, right), shape))

    def concat(self) -> None:
        (left, shape), (right, other) = self.pair(same=lambda shape: shape[1:])
        if shape[0] + other[0] <= 16:
            self.values.append((self.builder.concat(left, right), (shape[0] + other[0], *shape[1:])))

    def excite(self) -> None:
        value, shape = self.choose.choice(self.values)
        factors = self.builder.conv2d(self.name(), self.builder.global_avg_pool(value), shape[0], kernel=1)
        self.values.append((self.builder.multiply(value, self.builder.sigmoid(factors)), shape))


@pytest.fixture(scope="session")
def random_plan() -> Callable[[int], Plan]:
    """Return a function from a seed to a small plan."""
    return lambda seed: _RandomPlan(seed).build()


@pytest.fixture(scope="session")
def random_mask() -> Callable[[Plan, int], NDArray[np.bool_]]:
    """Return a function from a plan and a seed to the mask of a random subset of its filters."""

    def mask(plan: Plan, seed: int) -> NDArray[np.bool_]:
        rng = np.random.default_rng(seed)
        survivors = (np.sort(rng.permutation(size)[: rng.integers(1, size, endpoint=True)]) for size in plan.sizes)
        return Subset(tuple(survivors)).mask(plan.sizes)

    return mask
