"""Fresh weights, drawn as PyTorch's layers draw theirs, from a seed and without PyTorch."""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.network.operations import BatchNorm, has_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distreal_edge.network.plan import Plan

__all__ = ["initial_weights"]


def initial_weights(plan: Plan, seed: int) -> dict[str, NDArray[np.float32]]:
    """Return weights for every tensor of the plan.

    Convolutions and linear layers are uniform within one over the square root of the fan-in, weights and biases alike
    (`kaiming_uniform` with a = sqrt(5)); batch norms start as the identity, with mean 0 and variance 1.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for operation in filter(has_weights, plan.operations):
        for name in (f"{operation.name}.{tensor}" for tensor in ("weight", "bias", "running_mean", "running_var")):
            shape = plan.tensors.get(name)
            if shape is None:
                continue
            if isinstance(operation, BatchNorm):
                start = 1.0 if name.endswith((".weight", ".running_var")) else 0.0
                weights[name] = np.full(shape, start, dtype=np.float32)
            else:
                bound = 1.0 / sqrt(prod(plan.tensors[f"{operation.name}.weight"][1:]))
                weights[name] = rng.uniform(-bound, bound, size=shape).astype(np.float32)
    return weights
