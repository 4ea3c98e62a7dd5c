"""The typed operations that a plan is made of, and what each does to shapes.

Every operation makes one value, which bears the operation's name. A value is either feature maps `[N, C, H, W]`, whose
shape is written `(C, H, W)`, or features `[N, F]`, written `(F,)`. The meaning of every field is PyTorch's.
"""

from __future__ import annotations

from typing import Annotated, TypeGuard, get_args

import msgspec

from distreal_edge.errors import NetworkError

__all__ = [
    "INPUT",
    "OPERATION_TYPES",
    "Add",
    "AvgPool",
    "BatchNorm",
    "Concat",
    "Conv2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "Hardswish",
    "Linear",
    "MaxPool",
    "Multiply",
    "Operation",
    "Relu",
    "Relu6",
    "Shape",
    "Sigmoid",
    "has_weights",
    "output_shape",
]

INPUT = "input"
"""The name of the value that the network is given."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.\-]+(#[0-9]+)?\Z")]
Count = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Extent = Annotated[int, msgspec.Meta(ge=1, le=256)]
Margin = Annotated[int, msgspec.Meta(ge=0, le=256)]
Shape = tuple[int, ...]

_Pair = tuple[Extent, Extent]
_Margins = tuple[Margin, Margin]
_Inputs = Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=256)]


class _Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    name: Name
    inputs: _Inputs


class Conv2d(_Base, frozen=True, kw_only=True, tag="conv2d"):
    """Convolve `[N, C, H, W]`, with zero padding; `groups` equal to the input channels (and over 1) is depthwise."""

    out_channels: Count
    kernel: _Pair
    stride: _Pair = (1, 1)
    padding: _Margins = (0, 0)
    dilation: _Pair = (1, 1)
    groups: Count = 1
    bias: bool = True


class BatchNorm(_Base, frozen=True, kw_only=True, tag="batch_norm"):
    """Normalise every channel or feature over the batch, then scale and shift it."""

    epsilon: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 1e-5
    momentum: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.1


class Relu(_Base, frozen=True, kw_only=True, tag="relu"):
    """`max(x, 0)`."""


class Relu6(_Base, frozen=True, kw_only=True, tag="relu6"):
    """`min(max(x, 0), 6)`."""


class Hardswish(_Base, frozen=True, kw_only=True, tag="hardswish"):
    """`x * min(max(x + 3, 0), 6) / 6`."""


class Sigmoid(_Base, frozen=True, kw_only=True, tag="sigmoid"):
    """`1 / (1 + exp(-x))`."""


class MaxPool(_Base, frozen=True, kw_only=True, tag="max_pool"):
    """Take the maximum of each window; padding counts as minus infinity."""

    kernel: _Pair
    stride: _Pair
    padding: _Margins = (0, 0)


class AvgPool(_Base, frozen=True, kw_only=True, tag="avg_pool"):
    """Take the mean of each window; `count_include_pad` says whether padding counts as zeros or not at all."""

    kernel: _Pair
    stride: _Pair
    padding: _Margins = (0, 0)
    count_include_pad: bool = True


class GlobalAvgPool(_Base, frozen=True, kw_only=True, tag="global_avg_pool"):
    """Take the mean over height and width: `(C, H, W)` becomes `(C, 1, 1)`."""


class Add(_Base, frozen=True, kw_only=True, tag="add"):
    """Add two values of the same shape."""


class Multiply(_Base, frozen=True, kw_only=True, tag="multiply"):
    """Multiply two values of the same shape, or maps `(C, H, W)` by one factor per channel `(C, 1, 1)`."""


class Concat(_Base, frozen=True, kw_only=True, tag="concat"):
    """Put values one after the other along the channels."""


class Flatten(_Base, frozen=True, kw_only=True, tag="flatten"):
    """Turn `(C, H, W)` into `(C * H * W,)`, channel after channel."""


class Linear(_Base, frozen=True, kw_only=True, tag="linear"):
    """Multiply features `(F,)` by a matrix `[out_features, F]`."""

    out_features: Count
    bias: bool = True


class Dropout(_Base, frozen=True, kw_only=True, tag="dropout"):
    """Zero single elements with probability `p` in training, and scale the others by `1 / (1 - p)`."""

    p: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]


Operation = (
    Conv2d
    | BatchNorm
    | Relu
    | Relu6
    | Hardswish
    | Sigmoid
    | MaxPool
    | AvgPool
    | GlobalAvgPool
    | Add
    | Multiply
    | Concat
    | Flatten
    | Linear
    | Dropout
)
OPERATION_TYPES: tuple[type[Operation], ...] = get_args(Operation)


def has_weights(operation: Operation) -> TypeGuard[Conv2d | BatchNorm | Linear]:
    """Return whether the operation owns tensors in the network's file."""
    return isinstance(operation, (Conv2d, BatchNorm, Linear))


def output_shape(operation: Operation, inputs: tuple[Shape, ...]) -> Shape:
    """Return the shape of the value that the operation makes of inputs with these shapes, or raise `NetworkError`."""
    expected = {Add: 2, Multiply: 2, Concat: len(inputs)}.get(type(operation), 1)
    if len(inputs) != expected:
        raise _fault(operation, f"takes {expected} inputs, got {len(inputs)}")
    first = inputs[0]
    match operation:
        case Conv2d() | MaxPool() | AvgPool():
            return _windows_shape(operation, first)
        case GlobalAvgPool():
            return (_maps(operation, first)[0], 1, 1)
        case Add():
            if first != inputs[1]:
                raise _fault(operation, f"adds values of shapes {first} and {inputs[1]}, which differ")
            return first
        case Multiply():
            return _product_shape(operation, first, inputs[1])
        case Concat():
            return _concat_shape(operation, inputs)
        case Flatten():
            channels, height, width = _maps(operation, first)
            return (channels * height * width,)
        case Linear():
            if len(first) != 1:
                raise _fault(operation, f"reads features (F,), got maps {first}; put a flatten before it")
            return (operation.out_features,)
        case _:
            return first


def _fault(operation: Operation, complaint: str) -> NetworkError:
    message = f"operation {operation.name!r} ({operation.__struct_config__.tag}) {complaint}"
    return NetworkError(message)


def _maps(operation: Operation, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise _fault(operation, f"reads maps (C, H, W), got features {shape}")
    return shape


def _windows_shape(operation: Conv2d | MaxPool | AvgPool, shape: Shape) -> Shape:
    channels, *sides = _maps(operation, shape)
    dilation = (1, 1)
    if isinstance(operation, Conv2d):
        dilation = operation.dilation
        if channels % operation.groups or operation.out_channels % operation.groups:
            complaint = f"has {operation.groups} groups, which do not divide {channels} inputs and "
            raise _fault(operation, complaint + f"{operation.out_channels} outputs")
        channels = operation.out_channels
    elif any(2 * margin > extent for margin, extent in zip(operation.padding, operation.kernel, strict=True)):
        raise _fault(operation, f"pads by {operation.padding}, more than half of its window {operation.kernel}")
    out: list[int] = []
    for axis, side in enumerate(sides):
        reach = dilation[axis] * (operation.kernel[axis] - 1) + 1
        room = side + 2 * operation.padding[axis] - reach
        if room < 0:
            raise _fault(operation, f"has a window of {reach} on a side of {side} padded by {operation.padding[axis]}")
        out.append(room // operation.stride[axis] + 1)
    return (channels, out[0], out[1])


def _product_shape(operation: Operation, first: Shape, second: Shape) -> Shape:
    if first == second:
        return first
    large, small = (first, second) if second[1:] == (1, 1) else (second, first)
    if len(large) == 3 and small == (large[0], 1, 1):
        return large
    raise _fault(operation, f"multiplies shapes {first} and {second}; they must be equal, or one (C, 1, 1)")


def _concat_shape(operation: Operation, inputs: tuple[Shape, ...]) -> Shape:
    if any(shape[1:] != inputs[0][1:] or len(shape) != len(inputs[0]) for shape in inputs):
        raise _fault(operation, f"joins shapes {inputs}, which differ in more than channels")
    return (sum(shape[0] for shape in inputs), *inputs[0][1:])
