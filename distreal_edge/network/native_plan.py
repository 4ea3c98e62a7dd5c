"""A plan as the compiled engine reads it: values by number, operations in order, the filter behind every channel.

The compiled engine believes nothing of what stands here: it checks every number again before it touches memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from distreal_edge import _native
from distreal_edge.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from distreal_edge.network.operations import Operation, Shape
    from distreal_edge.network.plan import Plan

__all__ = ["MAXIMUM_BATCH", "by_operation", "lower_plan"]

MAXIMUM_BATCH = 2**20
"""Images of one mini-batch."""

_TENSORS = ("weight", "bias", "running_mean", "running_var")
_SETTINGS = frozenset(
    {"kernel", "stride", "padding", "dilation", "groups", "bias", "epsilon", "count_include_pad", "p"}
)

_Tensor = TypeVar("_Tensor")


def lower_plan(plan: Plan) -> _native.Plan:
    """Hand a plan over to the compiled engine; raise `NetworkError` when it does not fit into memory.

    Value 0 is the network's input and operation j makes value j + 1. `Plan.native` keeps what this returns.
    """
    number = {value: position for position, value in enumerate(plan.shapes)}
    try:
        return _native.Plan(
            _maps_shape(plan.input_shape),
            [_lower_operation(plan, operation, number) for operation in plan.operations],
            [np.ascontiguousarray(plan.layout.of[value], dtype=np.int32) for value in plan.shapes],
            plan.sizes,
            plan.preprocessing.mean,
            plan.preprocessing.std,
            plan.preprocessing.crop_padding,
        )
    except MemoryError:
        message = "the network is too large for this machine's memory; use one with smaller maps or fewer filters"
        raise NetworkError(message) from None


def by_operation(plan: Plan, tensors: Mapping[str, _Tensor]) -> list[tuple[_Tensor, ...]]:
    """Return those of the tensors that each operation owns: weight, bias, running mean, running variance."""
    return [
        tuple(tensors[name] for tensor in _TENSORS if (name := f"{operation.name}.{tensor}") in tensors)
        for operation in plan.operations
    ]


def _lower_operation(plan: Plan, operation: Operation, number: Mapping[str, int]) -> _native.Operation:
    fields: dict[str, Any] = msgspec.structs.asdict(operation)
    return _native.Operation(
        str(operation.__struct_config__.tag),
        [number[value] for value in operation.inputs],
        _maps_shape(plan.shapes[operation.name]),
        rescales=plan.rescales(operation),
        **{name: setting for name, setting in fields.items() if name in _SETTINGS},
    )


def _maps_shape(shape: Shape) -> tuple[int, int, int]:
    """Return features `(F,)` as maps of a single pixel."""
    channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
    return channels, height, width
