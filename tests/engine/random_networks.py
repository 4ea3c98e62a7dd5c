"""Random networks, subsets and batches: every operation may meet every other, at odd sizes.

Chance is handed in, so that Hypothesis can shrink what it finds and the fuzzer can repeat it from a seed. No PyTorch
here: the fuzzer runs where it would be in the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from distreal_edge import Network, Plan, PlanBuilder, Preprocessing, Subset
from distreal_edge.network.operations import BatchNorm

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from numpy.typing import NDArray

Maps = tuple[int, int, int]


@dataclass(frozen=True)
class Limits:
    """How large a network may become: per value, and in all."""

    channels: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 8, 13, 17)
    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 9)
    kernels: tuple[int, ...] = (1, 1, 2, 3, 3, 4, 5)
    paddings: tuple[int, ...] = (0, 0, 1, 1, 2, 3)
    value_elements: int = 700
    operations: int = 14


class RandomPlan:
    """Grow a plan operation by operation; a later one may read any value, and some are read by nobody."""

    def __init__(self, chance: Random, limits: Limits) -> None:
        self.chance = chance
        self.limits = limits
        shape = (self.of((1, 2, 3, 4)), self.of(limits.sides), self.of(limits.sides))
        self.input_shape = shape
        self.builder = PlanBuilder(shape)
        self.values: list[tuple[str, Maps]] = [("input", shape)]
        self.named = 0

    def of(self, choices: tuple[Any, ...]) -> Any:
        return choices[self.chance.randrange(len(choices))]

    def coin(self, *, one_in: int = 2) -> bool:
        return self.chance.randrange(one_in) == 0

    def name(self) -> str:
        self.named += 1
        return f"layer{self.named}"

    def value(self) -> tuple[str, Maps]:
        # Mostly the newest, so that networks become deep.
        return self.values[-1] if self.coin() else self.of(tuple(self.values))

    def add_value(self, name: str, shape: Maps) -> None:
        self.values.append((name, shape))

    def build(self) -> Plan:
        self.conv()
        steps = (
            self.conv,
            self.conv,
            self.grouped,
            self.depthwise,
            self.norm,
            self.norm,
            self.activation,
            self.activation,
            self.pool,
            self.add,
            self.concat,
            self.excite,
            self.multiply,
            self.dropout,
        )
        for _ in range(self.chance.randrange(1, self.limits.operations)):
            self.of(steps)()
        output = self.head()
        return self.builder.finish(
            output, rescale=self.of((None, True, False)), preprocessing=self.preprocessing(self.input_shape)
        )

    def preprocessing(self, shape: Maps) -> Preprocessing:
        channels = range(shape[0])
        return Preprocessing(
            mean=tuple(self.chance.randrange(10) / 10 for _ in channels) if self.coin() else (),
            std=tuple((1 + self.chance.randrange(10)) / 10 for _ in channels) if self.coin() else (),
            crop_padding=self.of((0, 0, 1, 2, 5)),
            horizontal_flip=self.coin(),
        )

    def head(self) -> str:
        b = self.builder
        value, _ = self.values[-1]
        classes = self.of((1, 2, 3, 5, 10))
        if self.coin(one_in=6):  # scores straight from maps, whose filters are classes then
            return b.flatten(b.global_avg_pool(b.conv2d(self.name(), value, classes, kernel=1)))
        if self.coin():
            value = b.global_avg_pool(value)
        value = b.flatten(value)
        if self.coin(one_in=3):
            value = b.dropout(value, self.of((0.0, 0.25, 0.5)))
        if self.coin(one_in=3):
            value = b.linear(self.name(), value, self.of((1, 4, 9)), bias=self.coin())
            value = b.batch_norm(self.name(), value, epsilon=1e-3) if self.coin() else value
            value = self.of((b.relu, b.hardswish, b.sigmoid))(value)
        return b.linear(self.name(), value, classes, bias=self.coin())

    def conv(self, source: tuple[str, Maps] | None = None, groups: int = 1, outputs: int = 0) -> None:
        value, shape = self.value() if source is None else source
        settings = {}
        sides = []
        for axis in range(2):
            kernel, padding, stride = (
                self.of(self.limits.kernels),
                self.of(self.limits.paddings),
                self.of((1, 1, 1, 2, 3)),
            )
            dilation = self.of((1, 1, 1, 2, 3))
            room = shape[1 + axis] + 2 * padding - dilation * (kernel - 1) - 1
            if room < 0:
                kernel, room = 1, shape[1 + axis] + 2 * padding - 1
            sides.append(room // stride + 1)
            for key, number in {"kernel": kernel, "padding": padding, "stride": stride, "dilation": dilation}.items():
                settings.setdefault(key, []).append(number)
        outputs = outputs or groups * self.of(self.limits.channels)
        if outputs * sides[0] * sides[1] > self.limits.value_elements or outputs > 64:
            return
        pairs = {key: (numbers[0], numbers[1]) for key, numbers in settings.items()}
        made = self.builder.conv2d(self.name(), value, outputs, groups=groups, bias=self.coin(), **pairs)
        self.add_value(made, (outputs, sides[0], sides[1]))

    def grouped(self) -> None:
        value, shape = self.value()
        divisors = tuple(number for number in range(1, shape[0] + 1) if shape[0] % number == 0)
        groups = self.of(divisors)
        self.conv((value, shape), groups=groups, outputs=groups * self.of((1, 2, 3)))

    def depthwise(self) -> None:
        value, shape = self.value()
        self.conv((value, shape), groups=shape[0], outputs=shape[0] * self.of((1, 1, 2, 3)))

    def norm(self) -> None:
        value, shape = self.value()
        self.add_value(self.builder.batch_norm(self.name(), value, epsilon=self.of((1e-5, 1e-3, 0.1))), shape)

    def activation(self) -> None:
        value, shape = self.value()
        b = self.builder
        self.add_value(self.of((b.relu, b.relu, b.relu6, b.hardswish, b.sigmoid))(value), shape)

    def dropout(self) -> None:
        value, shape = self.value()
        self.add_value(self.builder.dropout(value, self.of((0.0, 0.1, 0.5, 0.9))), shape)

    def pool(self) -> None:
        value, shape = self.value()
        if self.coin(one_in=4):
            self.add_value(self.builder.global_avg_pool(value), (shape[0], 1, 1))
            return
        kernel, stride, padding, sides = [], [], [], []
        for side in shape[1:]:
            extent = self.of((1, 2, 2, 3, 3, 4))
            margin = self.chance.randrange(extent // 2 + 1)
            if extent > side + 2 * margin:
                extent, margin = 1, 0
            step = self.of((1, 2, 2, 3))
            kernel.append(extent)
            stride.append(step)
            padding.append(margin)
            sides.append((side + 2 * margin - extent) // step + 1)
        windows: Any = {"kernel": tuple(kernel), "stride": tuple(stride), "padding": tuple(padding)}
        if self.coin():
            made = self.builder.max_pool(value, **windows)
        else:
            made = self.builder.avg_pool(value, count_include_pad=self.coin(), **windows)
        self.add_value(made, (shape[0], sides[0], sides[1]))

    def other(self, same: Callable[[Maps], object], shape: Maps) -> str | None:
        fitting = tuple(value for value, found in self.values if same(found) == same(shape))
        return self.of(fitting) if fitting else None

    def add(self) -> None:
        value, shape = self.value()
        other = self.other(lambda found: found, shape)
        if other is not None:
            self.add_value(self.builder.add(value, other), shape)

    def multiply(self) -> None:
        value, shape = self.value()
        other = self.other(lambda found: found, shape)
        if other is not None:
            self.add_value(self.builder.multiply(self.builder.sigmoid(value), other), shape)

    def excite(self) -> None:
        value, shape = self.value()
        b = self.builder
        factors = b.conv2d(self.name(), b.global_avg_pool(value), shape[0], kernel=1)
        factors = self.of((b.sigmoid, b.hardswish))(factors)
        pair = (value, factors) if self.coin() else (factors, value)
        self.add_value(b.multiply(*pair), shape)

    def concat(self) -> None:
        value, shape = self.value()
        parts, channels = [value], shape[0]
        for _ in range(self.chance.randrange(1, 4)):
            fitting = tuple(part for part in self.values if part[1][1:] == shape[1:])
            part, found = self.of(fitting)
            parts.append(part)
            channels += found[0]
        if channels * shape[1] * shape[2] <= self.limits.value_elements and channels <= 64:
            self.add_value(self.builder.concat(*parts), (channels, *shape[1:]))


def random_plan(chance: Random, limits: Limits = Limits()) -> Plan:
    """Return a plan of a few small operations."""
    return RandomPlan(chance, limits).build()


def random_subset(plan: Plan, chance: Random) -> Subset:
    """Return a subset: of everything, of one filter for each group, of the first ones, or of any."""
    kind = chance.choice(("full", "single", "first", "any", "any", "any"))
    rng = np.random.default_rng(chance.randrange(2**32))
    survivors = []
    for size in plan.sizes:
        count = {"full": size, "single": 1}.get(kind, int(rng.integers(1, size, endpoint=True)))
        kept = np.arange(count) if kind == "first" else np.sort(rng.permutation(size)[:count])
        survivors.append(kept.astype(np.int64))
    return Subset(tuple(survivors))


def random_weights(plan: Plan, seed: int) -> Network:
    """Return a network whose every tensor is random, batch norms and statistics too."""
    rng = np.random.default_rng(seed)
    weights = dict(Network.initialise(plan, seed).weights)
    for name, array in weights.items():
        if name.endswith("running_var") or (name not in plan.statistics and np.all(array == 1.0)):
            weights[name] = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
        elif np.all(array == 0.0):
            weights[name] = rng.normal(0.0, 0.3, array.shape).astype(np.float32)
    return Network(plan, weights)


def smallest_batch(plan: Plan) -> int:
    """Return how many images a step needs at least: a batch norm of single pixels needs two."""
    norms = (plan.shapes[operation.name] for operation in plan.operations if isinstance(operation, BatchNorm))
    return 2 if any(prod(shape[1:]) == 1 for shape in norms) else 1


def random_batch(plan: Plan, count: int, seed: int, *, as_bytes: bool) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return images, uint8 or float32, and labels."""
    rng = np.random.default_rng(seed)
    images: NDArray[Any] = rng.integers(0, 256, (count, *plan.input_shape), dtype=np.uint8)
    if not as_bytes:
        images = rng.random((count, *plan.input_shape), dtype=np.float32)
    return images, rng.integers(0, plan.classes, count)
