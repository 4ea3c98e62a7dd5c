"""What a training step costs: multiply-accumulates and memory, counted from the plan."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.network.operations import INPUT, Conv2d, Linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distreal_edge.network.operations import Operation
    from distreal_edge.network.plan import Plan

__all__ = ["Cost", "step_cost"]

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """What one training step costs.

    `macs`: multiply-accumulates per image of convolutions and linear layers, forward, backward-data and
    backward-weights; windows over padding count in full, everything else (batch norm, activations, pooling) counts as
    nothing. `peak_bytes`: memory of a step at the batch size asked for, float32.
    """

    macs: int
    peak_bytes: int


def step_cost(plan: Plan, kept: NDArray[np.bool_], batch: int) -> Cost:
    """Count the cost of a step that keeps these filters; `kept` is `Subset.mask`, bool `[filters + 1]`."""
    macs = sum(_operation_macs(plan, operation, kept) for operation in plan.operations)
    return Cost(macs, _peak_bytes(plan, kept, batch))


def _operation_macs(plan: Plan, operation: Operation, kept: NDArray[np.bool_]) -> int:
    if not isinstance(operation, (Conv2d, Linear)):
        return 0
    places = prod(plan.shapes[operation.name][1:])
    forward = plan.parameters[f"{operation.name}.weight"].surviving(kept) * places
    # Forward and backward-weights always; backward-data only where there is something to train further up.
    return forward * (3 if operation.inputs[0] in plan.differentiable else 2)


def _peak_bytes(plan: Plan, kept: NDArray[np.bool_], batch: int) -> int:
    # What the reference engine holds at the end of its forward pass: weights and momentum in full, the gradients of
    # the surviving weights, the images and every value, and the two largest gradients of values on the way back.
    weights = sum(prod(shape) for shape in plan.tensors.values())
    momentum = sum(prod(parameter.shape) for parameter in plan.parameters.values())
    gradients = sum(parameter.surviving(kept) for parameter in plan.parameters.values())
    values = sorted(_surviving_elements(plan, value, kept) for value in plan.shapes if value != INPUT)
    held = prod(plan.input_shape) + sum(values) + sum(values[-2:])
    return _FLOAT_BYTES * (weights + momentum + gradients + batch * held)


def _surviving_elements(plan: Plan, value: str, kept: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(kept[plan.layout.of[value]])) * prod(plan.shapes[value][1:])
