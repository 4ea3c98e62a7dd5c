"""The functions and tensor methods that a plan can hold, and the operations that they become.

Parameters are named and ordered as PyTorch's, apart from the first, so that calls bind to them as they were written.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from distreal_edge.errors import NetworkError
from distreal_edge.network.operations import (
    Add,
    AvgPool,
    Concat,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Hardswish,
    MaxPool,
    Multiply,
    Relu,
    Relu6,
    Sigmoid,
)
from distreal_edge.network.tracing_values import BATCH, Batch, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from distreal_edge.network.tracing_values import Recorder

__all__ = [
    "FUNCTIONS",
    "METHODS",
    "adaptive_avg_pool",
    "avg_pool",
    "dropout",
    "flatten",
    "hardswish",
    "max_pool",
    "pair",
    "relu",
    "relu6",
    "sigmoid",
    "tensor",
]


def pair(extent: Any, what: str) -> tuple[int, int]:
    """Return PyTorch's "one number or two" as two numbers; raise `NetworkError` that names `what` otherwise."""
    sides = list(extent) if isinstance(extent, (tuple, list)) else [extent]
    if len(sides) not in {1, 2} or not all(type(side) is int for side in sides):
        raise NetworkError(f"{what} must be one whole number or two, got {extent!r}")
    return (sides[0], sides[-1])


def relu(recorder: Recorder, value: Any, inplace: bool = False) -> Value:  # noqa: ARG001 - whoever calls us handles it
    """Record a ReLU."""
    return recorder.add(Relu, tensor(value))


def relu6(recorder: Recorder, value: Any, inplace: bool = False) -> Value:  # noqa: ARG001
    """Record a ReLU that is capped at 6."""
    return recorder.add(Relu6, tensor(value))


def hardswish(recorder: Recorder, value: Any, inplace: bool = False) -> Value:  # noqa: ARG001
    """Record a hardswish."""
    return recorder.add(Hardswish, tensor(value))


def sigmoid(recorder: Recorder, value: Any) -> Value:
    """Record a sigmoid."""
    return recorder.add(Sigmoid, tensor(value))


def max_pool(
    recorder: Recorder,
    value: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    """Record a max-pool."""
    if pair(dilation, "dilation") != (1, 1):
        raise NetworkError("a max-pool with dilation is not possible; use dilation=1")
    if return_indices:
        raise NetworkError("return_indices=True is not possible; a plan has no use for indices")
    return recorder.add(MaxPool, tensor(value), **_window(kernel_size, stride, padding, ceil_mode))


def avg_pool(
    recorder: Recorder,
    value: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """Record an average-pool."""
    if divisor_override is not None:
        raise NetworkError("divisor_override is not possible; a plan takes the mean of each window")
    window = _window(kernel_size, stride, padding, ceil_mode)
    return recorder.add(AvgPool, tensor(value), **window, count_include_pad=count_include_pad)


def adaptive_avg_pool(recorder: Recorder, value: Any, output_size: Any) -> Value:
    """Record an adaptive average-pool: a mean over the map, or windows where they divide it evenly."""
    maps = _maps(value)
    asked = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    sides = maps.shape[1:]
    target = pair([side if want is None else want for want, side in zip(asked, sides, strict=True)], "output_size")
    if target == (1, 1):
        return recorder.add(GlobalAvgPool, maps)
    if target == sides:
        return recorder.copy(maps)
    if any(want < 1 or side % want for want, side in zip(target, sides, strict=True)):
        raise NetworkError(f"it divides maps of {sides} unevenly into {target}; use output size 1, or AvgPool2d")
    window = (sides[0] // target[0], sides[1] // target[1])
    return recorder.add(AvgPool, maps, kernel=window, stride=window)


def flatten(recorder: Recorder, value: Any, start_dim: int = 0, end_dim: int = -1) -> Value:
    """Record a flatten of everything but the batch; features stay as they are."""
    given = tensor(value)
    last = given.axes - 1
    if start_dim % given.axes != 1 or end_dim % given.axes != last:
        raise NetworkError("it must keep the batch and flatten all the rest: write torch.flatten(x, 1)")
    if len(given.shape) == 1:
        return given
    return replace(recorder.add(Flatten, given), memory=given.memory)


def dropout(recorder: Recorder, value: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:  # noqa: ARG001
    """Record element-wise dropout, unless it drops nothing in training either."""
    given = tensor(value)
    return recorder.add(Dropout, given, p=float(p)) if training and p != 0 else given


def _dropout_as_torch(recorder: Recorder, value: Any, p: float, train: bool) -> Value:
    return dropout(recorder, value, p, train)


def _add(recorder: Recorder, value: Any, other: Any, alpha: float = 1) -> Any:
    if type(value) is int and type(other) is int:
        return value + other  # of shapes
    if alpha != 1:
        raise NetworkError(f"an addition with alpha={alpha} is not possible; add values as they are")
    left, right = _two(value, other, "adds a constant", "use the bias of a layer (sum([a, b]) adds 0: write a + b)")
    if left.shape != right.shape:
        raise NetworkError(
            f"it adds values of shapes {left.shape} and {right.shape} by broadcasting, which is not possible; make the "
            "shapes equal"
        )
    return recorder.add(Add, left, right)


def _multiply(recorder: Recorder, value: Any, other: Any) -> Any:
    if type(value) is int and type(other) is int:
        return value * other  # of shapes
    return recorder.add(
        Multiply, *_two(value, other, "multiplies by a constant", "let the weights before it learn the factor")
    )


def _floor_divide(_recorder: Recorder, value: Any, other: Any) -> int:
    if type(value) is int and type(other) is int:
        return value // other  # of shapes
    raise NetworkError("a plan has no division")


def _concat(recorder: Recorder, tensors: Any, dim: int = 0) -> Value:
    if not isinstance(tensors, (tuple, list)) or not tensors:
        raise NetworkError("it must be given a list of values")
    values = [tensor(value) for value in tensors]
    if dim % values[0].axes != 1:
        raise NetworkError(f"it joins along dim={dim}; a plan joins channels only: write torch.cat(values, dim=1)")
    return recorder.add(Concat, *values) if len(values) > 1 else recorder.copy(values[0])


def _mean(recorder: Recorder, value: Any, dim: Any = None, keepdim: bool = False) -> Value:
    maps = _maps(value)
    over = sorted(axis % maps.axes for axis in dim) if isinstance(dim, (tuple, list)) else dim
    if over != [2, 3]:
        raise NetworkError(f"a mean over dim={dim} is not possible, only one over height and width: x.mean((2, 3))")
    pooled = recorder.add(GlobalAvgPool, maps)
    return pooled if keepdim else recorder.add(Flatten, pooled)


def _view(recorder: Recorder, value: Any, *sizes: Any, shape: Any = None) -> Value:
    given = tensor(value)
    asked: Sequence[Any] = shape if shape is not None else sizes
    if len(asked) == 1 and isinstance(asked[0], (tuple, list)):
        asked = asked[0]
    features = prod(given.shape)
    if list(asked) in ([BATCH, -1], [BATCH, features], [-1, features]):
        return flatten(recorder, given, 1)
    if list(asked) == [BATCH, *given.shape]:
        return given
    wanted = ", ".join(str(side) for side in asked)
    raise NetworkError(
        f"it makes the shape ({wanted}) of {given.shape} for an image; only flattening is possible: "
        "torch.flatten(x, 1). A squeeze-excite needs no reshaping when its layers are 1x1 convolutions"
    )


def _contiguous(_recorder: Recorder, value: Any) -> Value:
    return tensor(value)


def _clone(recorder: Recorder, value: Any) -> Value:
    return recorder.copy(tensor(value))


def _size(_recorder: Recorder, value: Any, dim: int | None = None) -> Any:
    sizes = (BATCH, *tensor(value).shape)
    return sizes if dim is None else sizes[dim]


def _attribute(_recorder: Recorder, value: Any, name: str) -> Any:
    given = tensor(value)
    if name == "shape":
        return (BATCH, *given.shape)
    if name == "ndim":
        return given.axes
    raise NetworkError(f"a plan has no use for the attribute {name!r} of a tensor")


def _item(_recorder: Recorder, value: Any, index: Any) -> Any:
    if isinstance(value, tuple):
        return value[index]  # of a shape
    raise NetworkError("a plan cannot take parts of a value; give each part a convolution of its own")


def _window(kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool) -> dict[str, Any]:
    if ceil_mode:
        raise NetworkError(
            "ceil_mode=True is not possible; use ceil_mode=False, with padding where windows are missing"
        )
    kernel = pair(kernel_size, "kernel_size")
    given = stride is not None and stride != []
    return {
        "kernel": kernel,
        "stride": pair(stride, "stride") if given else kernel,
        "padding": pair(padding, "padding"),
    }


def tensor(value: Any) -> Value:
    """Return the argument if it is maps or features; raise `NetworkError` otherwise."""
    if isinstance(value, Value):
        return value
    what = repr(value) if isinstance(value, (int, float, str, tuple, list, Batch, type(None))) else type(value).__name__
    raise NetworkError(f"it is given {what} where a plan needs maps or features")


def _maps(value: Any) -> Value:
    given = tensor(value)
    if given.axes != 4:
        raise NetworkError(f"it reads maps [N, C, H, W], but is given {given.shape} for an image")
    return given


def _two(value: Any, other: Any, what: str, advice: str) -> tuple[Value, Value]:
    if not isinstance(value, Value) or not isinstance(other, Value):
        raise NetworkError(f"it {what}, which is not possible; {advice}")
    return value, other


FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    functional.relu: relu,
    torch.relu: relu,
    torch.relu_: relu,
    functional.relu6: relu6,
    functional.hardswish: hardswish,
    torch.sigmoid: sigmoid,
    torch.sigmoid_: sigmoid,
    functional.sigmoid: sigmoid,
    functional.max_pool2d: max_pool,
    torch.max_pool2d: max_pool,
    functional.avg_pool2d: avg_pool,
    functional.adaptive_avg_pool2d: adaptive_avg_pool,
    functional.dropout: dropout,
    torch.dropout: _dropout_as_torch,
    torch.flatten: flatten,
    torch.add: _add,
    operator.add: _add,
    operator.iadd: _add,
    torch.mul: _multiply,
    torch.multiply: _multiply,
    operator.mul: _multiply,
    operator.imul: _multiply,
    operator.floordiv: _floor_divide,
    torch.cat: _concat,
    torch.concat: _concat,
    torch.concatenate: _concat,
    torch.mean: _mean,
    torch.reshape: _view,
    torch.clone: _clone,
    getattr: _attribute,
    operator.getitem: _item,
}
"""What turns a call of each function into operations."""

METHODS: Mapping[str, Callable[..., Any]] = {
    "relu": relu,
    "relu_": relu,
    "sigmoid": sigmoid,
    "sigmoid_": sigmoid,
    "add": _add,
    "add_": _add,
    "mul": _multiply,
    "mul_": _multiply,
    "multiply": _multiply,
    "multiply_": _multiply,
    "flatten": flatten,
    "mean": _mean,
    "view": _view,
    "reshape": _view,
    "contiguous": _contiguous,
    "clone": _clone,
    "size": _size,
}
"""What turns a call of each method of a tensor into operations."""
