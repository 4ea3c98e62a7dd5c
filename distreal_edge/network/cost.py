"""What a training step costs: multiply-accumulates, counted from the plan, and memory, from the engine's own plan."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from distreal_edge.errors import ConfigError
from distreal_edge.network.operations import Conv2d, Linear

if TYPE_CHECKING:
    import numpy as np
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
    nothing. `peak_bytes`: what the native engine holds during a step at the batch size asked for: the arena in which it
    places everything that a step makes, and the full network's weights, statistics and momentum. The arena depends a
    little on the instruction set, because images lie in blocks of a vector's length.
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
    weights = sum(prod(shape) for shape in plan.tensors.values())
    momentum = sum(prod(parameter.shape) for parameter in plan.parameters.values())
    try:
        arena = plan.native.step_bytes(kept, batch)
    except ValueError as error:  # the environment asks for an instruction set that does not run here
        raise ConfigError(str(error)) from None
    return arena + _FLOAT_BYTES * (weights + momentum)
