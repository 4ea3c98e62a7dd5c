"""The training step on PyTorch, over physically smaller tensors: the oracle of every other engine.

Only `distreal_edge.engine` imports this module, and only when somebody asks for the reference backend, because it
needs PyTorch. It trusts what it is given; the engine has checked it. `docs/engine.md` has the same in formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from distreal_edge.dropout import Subset
from distreal_edge.network.operations import (
    INPUT,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Hardswish,
    Linear,
    MaxPool,
    Multiply,
    Operation,
    Relu,
    Relu6,
    Sigmoid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from distreal_edge.network.plan import Plan

__all__ = ["ReferenceExecutor"]

Index = tuple[slice | Tensor, ...]
"""Which elements of a tensor: `tensor[index]` reads the survivors, `tensor[index] = values` writes them back."""


class ReferenceExecutor:
    """Run a plan over subsets of its filters.

    `weights` and `momentum` are tensors by name. Float32 arrays given to a float32 executor are shared, not copied:
    a step changes them. Tests use float64, where two ways to compute the same can be told from two different things.
    """

    def __init__(
        self, plan: Plan, weights: Mapping[str, NDArray[np.float32]], dtype: torch.dtype = torch.float32
    ) -> None:
        self.plan = plan
        self.dtype = dtype
        self.weights = {name: torch.from_numpy(array).to(dtype) for name, array in weights.items()}
        self.momentum = {name: torch.zeros_like(self.weights[name]) for name in plan.parameters}

    def use_threads(self, threads: int) -> None:
        """Set how many threads PyTorch uses: a setting of the whole process."""
        if torch.get_num_threads() != threads:  # setting it empties PyTorch's caches, even to the same number
            torch.set_num_threads(threads)

    def reset_momentum(self) -> None:
        """Set the momentum of every element to zero."""
        for momentum in self.momentum.values():
            momentum.zero_()

    def step(
        self,
        images: NDArray[np.floating],
        labels: NDArray[np.int64],
        subset: Subset,
        lr: float,
        momentum: float,
        weight_decay: float,
        rng: np.random.Generator,
        *,
        before_update: Callable[[], object] = lambda: None,
    ) -> float:
        """Train the survivors on prepared images `[N, C, H, W]`; return the mean loss before the update.

        Nothing has changed when `before_update` is called; if it raises, nothing will.
        """
        survivors = _Survivors.of(self.plan, subset)
        parts = _read_parts(self.plan, self.weights, survivors)

        with torch.enable_grad():
            trained = _all_parts(parts)
            for part in trained:
                part.values.requires_grad_()
            scores = self._forward(images, survivors, parts, _train_batch_norm, rng)  # N, classes
            loss = F.cross_entropy(scores, torch.from_numpy(labels))
            leaves = [part.values for part in trained]
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(loss, leaves, allow_unused=True)

        before_update()
        # SGD as torch.optim.SGD does it, on the touched elements; all others keep every bit.
        with torch.no_grad():
            for part, gradient in zip(trained, gradients, strict=True):
                if gradient is None:  # the class scores do not depend on this tensor
                    continue
                values = part.values.detach()
                decayed = gradient.add(values, alpha=weight_decay)
                velocity = (self.momentum[part.name][part.index] * momentum).add_(decayed)
                self.momentum[part.name][part.index] = velocity
                self.weights[part.name][part.index] = values.sub(velocity, alpha=lr)
        return float(loss.detach())

    def predict(self, images: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the full network's class scores `[N, classes]`, from the running statistics of its batch norms."""

        def batch_norm(operation: BatchNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            mean, variance = (self.weights[f"{operation.name}.{which}"] for which in ("running_mean", "running_var"))
            return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=operation.epsilon)

        return cast("NDArray[np.floating]", self._full_forward(images, batch_norm).numpy())

    def batch_moments(self, images: NDArray[np.floating]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Return mean and biased variance per channel of what every batch norm of the full network sees."""
        moments: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

        def batch_norm(operation: BatchNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            axes = (0, 2, 3) if x.ndim == 4 else (0,)
            variance, mean = torch.var_mean(x, dim=axes, correction=0)  # C
            moments[operation.name] = (mean.double().numpy(), variance.double().numpy())
            return _train_batch_norm(operation, x, weight, bias)

        self._full_forward(images, batch_norm)
        return moments

    def _full_forward(
        self, images: NDArray[np.floating], batch_norm: Callable[[BatchNorm, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        survivors = _Survivors.of(self.plan, Subset.full(self.plan.sizes))
        with torch.no_grad():
            return self._forward(images, survivors, _read_parts(self.plan, self.weights, survivors), batch_norm, None)

    def _forward(
        self,
        images: NDArray[np.floating],
        survivors: _Survivors,
        parts: Mapping[str, list[_Part]],
        batch_norm: Callable[[BatchNorm, Tensor, Tensor, Tensor], Tensor],
        rng: np.random.Generator | None,
    ) -> Tensor:
        """Return the class scores `[N, classes]`; without `rng` there is no element-wise dropout.

        Every value holds its surviving channels only, in the order of the channels: `[N, survivors, H, W]`.
        """
        values = {INPUT: torch.from_numpy(images).to(self.dtype)}
        for operation in self.plan.operations:
            x = values[operation.inputs[0]]
            if self.plan.rescales(operation):
                x = survivors.rescaled(operation.inputs[0], x)
            match operation:
                case Conv2d():
                    made = _convolve(self.plan, operation, x, parts)
                case Linear():
                    (weight,) = parts[f"{operation.name}.weight"]
                    made = F.linear(x, weight.values, _bias(operation, parts))
                case BatchNorm():
                    (weight,), (bias,) = parts[f"{operation.name}.weight"], parts[f"{operation.name}.bias"]
                    made = batch_norm(operation, x, weight.values, bias.values)
                case Add():
                    made = x + values[operation.inputs[1]]
                case Multiply():
                    made = x * values[operation.inputs[1]]  # N, C, H, W times N, C, 1, 1, either way round
                case Concat():
                    made = torch.cat([values[value] for value in operation.inputs], dim=1)
                case Dropout():
                    made = x if rng is None else _drop_elements(x, operation.p, rng)
                case _:
                    made = _without_weights(operation, x)
            values[operation.name] = made
            for value in set(operation.inputs):
                if self.plan.readers[value][-1] is operation:
                    del values[value]  # nobody reads it any more
        return values[self.plan.output]


@dataclass(frozen=True, slots=True)
class _Survivors:
    """What a subset means for one plan.

    `kept` is `Subset.mask`: which filters survive, by their number. `inverse_share` is `C_g / k_g` for the group of
    every filter. Both are `[filters + 1]`, the last entry standing for what is never dropped.
    """

    plan: Plan
    kept: NDArray[np.bool_]
    inverse_share: NDArray[np.float64]

    @staticmethod
    def of(plan: Plan, subset: Subset) -> _Survivors:
        sizes = np.array(plan.sizes, dtype=np.int64)
        shares = np.repeat(sizes / np.array(subset.counts, dtype=np.int64), sizes)
        return _Survivors(plan, subset.mask(plan.sizes), np.append(shares, 1.0))

    def rescaled(self, value: str, x: Tensor) -> Tensor:
        """Multiply every surviving channel (or feature) by the inverse of its group's surviving share."""
        filters = self.plan.layout.of[value]
        factors = self.inverse_share[filters[self.kept[filters]]]
        if np.all(factors == 1.0):
            return x
        return x * torch.from_numpy(factors).to(x.dtype).reshape(-1, *(1,) * (x.ndim - 2))


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Surviving elements of one trainable tensor: `values` is `tensor[index]`."""

    name: str
    index: Index
    values: Tensor


def _all_parts(parts: Mapping[str, list[_Part]]) -> list[_Part]:
    return [part for tensor in parts.values() for part in tensor]


def _read_parts(plan: Plan, weights: Mapping[str, Tensor], survivors: _Survivors) -> dict[str, list[_Part]]:
    """Gather the survivors of every trainable tensor.

    A tensor has one part, except the weight of a grouped convolution whose conv-groups keep parts of themselves: then
    there is one for each conv-group, empty where nothing survives.
    """
    parts: dict[str, list[_Part]] = {}
    for name, parameter in plan.parameters.items():
        rows = survivors.kept[parameter.rows]  # conv-groups, outputs
        if parameter.columns is None:
            indices: list[Index] = [(_along(rows.reshape(-1)),)]
        else:
            columns = survivors.kept[parameter.columns]  # conv-groups, inputs
            if _groups_stay_whole(rows, columns):
                indices = [(_along(rows.reshape(-1)),)]
            else:
                indices = [_block(rows, columns, group) for group in range(len(rows))]
        parts[name] = [_Part(name, index, weights[name][index].detach()) for index in indices]
    return parts


def _groups_stay_whole(rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> bool:
    """Return whether every conv-group survives either completely or not at all, as in a depthwise convolution."""
    alive = rows[:, 0]
    return bool(np.all(rows == alive[:, None]) and np.all(columns == alive[:, None]))


def _block(rows: NDArray[np.bool_], columns: NDArray[np.bool_], group: int) -> Index:
    """Return the index of the surviving rows and columns of one conv-group."""
    row, column = _along(rows[group], start=group * rows.shape[1]), _along(columns[group])
    if isinstance(row, Tensor) and isinstance(column, Tensor):
        return (row[:, None], column)  # every row with every column
    return (row, column)


def _along(kept: NDArray[np.bool_], start: int = 0) -> slice | Tensor:
    """Return the positions that are kept, counted from `start`: as a slice when they are contiguous."""
    positions = np.flatnonzero(kept) + start
    if len(positions) == 0:
        return slice(0, 0)
    first, end = int(positions[0]), int(positions[-1]) + 1
    return slice(first, end) if end - first == len(positions) else torch.from_numpy(positions)


def _bias(operation: Conv2d | Linear, parts: Mapping[str, list[_Part]]) -> Tensor | None:
    return parts[f"{operation.name}.bias"][0].values if operation.bias else None


def _convolve(plan: Plan, operation: Conv2d, x: Tensor, parts: Mapping[str, list[_Part]]) -> Tensor:
    weights = [part.values for part in parts[f"{operation.name}.weight"]]  # each outputs, inputs, height, width
    bias = _bias(operation, parts)
    stride, padding, dilation = operation.stride, operation.padding, operation.dilation
    if len(weights) == 1:
        groups = x.shape[1] // weights[0].shape[1]  # the conv-groups that survive: 1, unless all stay whole
        return F.conv2d(x, weights[0], bias, stride, padding, dilation, groups)

    # Conv-groups of unequal sizes: one convolution for each, over the channels of its own.
    made: list[Tensor] = []
    sides = plan.shapes[operation.name][1:]
    for weight, read in zip(weights, torch.split(x, [weight.shape[1] for weight in weights], dim=1), strict=True):
        outputs, inputs = weight.shape[:2]
        if outputs and inputs:
            made.append(F.conv2d(read, weight, None, stride, padding, dilation))
        else:  # a sum over nothing, or a sum that nobody reads
            made.append(x.new_zeros(len(x), outputs, *sides))
    together = torch.cat(made, dim=1)
    return together if bias is None else together + bias[:, None, None]


def _train_batch_norm(operation: BatchNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise by the survivors' batch statistics (biased variance); no running statistics are kept."""
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=operation.epsilon)


def _drop_elements(x: Tensor, p: float, rng: np.random.Generator) -> Tensor:
    """Zero single elements with probability p, and scale the others by `1 / (1 - p)`; one float32 draw for each."""
    kept = rng.random(tuple(x.shape), dtype=np.float32) >= np.float32(p)
    return x * torch.from_numpy(kept).to(x.dtype) * (1.0 / (1.0 - p))


def _without_weights(operation: Operation, x: Tensor) -> Tensor:
    match operation:
        case Relu():
            return F.relu(x)
        case Relu6():
            return F.relu6(x)
        case Hardswish():
            return F.hardswish(x)
        case Sigmoid():
            return torch.sigmoid(x)
        case MaxPool():
            return F.max_pool2d(x, operation.kernel, operation.stride, operation.padding)
        case AvgPool():
            return F.avg_pool2d(
                x,
                operation.kernel,
                operation.stride,
                operation.padding,
                count_include_pad=operation.count_include_pad,
            )
        case GlobalAvgPool():
            return x.mean(dim=(2, 3), keepdim=True)
        case Flatten():
            return x.flatten(1)  # N, C, H, W becomes N, C * H * W
    message = f"the reference engine has no rule for {operation!r}"
    raise NotImplementedError(message)
