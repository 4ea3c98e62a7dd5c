"""A network cut out of a larger one: what a subset keeps, as a network of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from distreal_edge.errors import NetworkError
from distreal_edge.network.layout import is_depthwise
from distreal_edge.network.operations import Conv2d
from distreal_edge.network.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from distreal_edge.network.operations import Operation

__all__ = ["cut_out"]


def cut_out(
    plan: Plan, weights: Mapping[str, NDArray[np.float32]], kept: NDArray[np.bool_]
) -> tuple[Plan, dict[str, NDArray[np.float32]]]:
    """Return plan and weights of the smaller network that a subset trains; `kept` is `Subset.mask`.

    It makes of any image the scores that the full network makes with the other filters left out: where the network
    rescales, what a layer reads from a thinned group is multiplied into its weights, and the smaller network, to which
    that group is whole, does the same from there on. Batch-norm statistics are cut out with the rest; they are the full
    network's, and want to be measured anew. Raises `NetworkError` for grouped convolutions that are not depthwise:
    each of their groups would keep another number of channels.
    """
    operations = tuple(_narrow(plan, operation, kept) for operation in plan.operations)
    narrow = Plan(plan.input_shape, operations, plan.rescale, plan.preprocessing)
    found: dict[str, NDArray[np.float32]] = {}
    scales = _scales(plan, kept)
    makers = {operation.name: operation for operation in plan.operations}
    for name in plan.tensors:
        operation = makers[name.rpartition(".")[0]]
        read = plan.layout.of[operation.inputs[0]]
        tensor = weights[name][kept[plan.layout.of[operation.name]]]
        if name.endswith(".weight") and tensor.ndim > 1 and tensor.shape[1] == len(read):
            tensor = tensor[:, kept[read]]
            if plan.rescales(operation):
                tensor = tensor * scales[read][kept[read]].reshape(-1, *(1,) * (tensor.ndim - 2))
        found[name] = np.ascontiguousarray(tensor, dtype=np.float32)
    return narrow, found


def _narrow(plan: Plan, operation: Operation, kept: NDArray[np.bool_]) -> Operation:
    if not isinstance(operation, Conv2d):
        return operation
    channels = plan.shapes[operation.inputs[0]][0]
    out_channels = int(np.count_nonzero(kept[plan.layout.of[operation.name]]))
    if is_depthwise(operation, channels):
        groups = int(np.count_nonzero(kept[plan.layout.of[operation.inputs[0]]]))
        return msgspec.structs.replace(operation, out_channels=out_channels, groups=groups)
    if operation.groups > 1:
        raise NetworkError(
            f"operation {operation.name!r} has {operation.groups} groups, which would keep different numbers of "
            "channels; only networks without such convolutions can be cut"
        )
    return msgspec.structs.replace(operation, out_channels=out_channels)


def _scales(plan: Plan, kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return, for every filter and the one that is never dropped, the inverse of its group's surviving share."""
    scales = np.ones(plan.filters + 1, dtype=np.float32)
    for begin, end in zip(plan.group_offsets, plan.group_offsets[1:], strict=False):
        scales[begin:end] = (end - begin) / np.count_nonzero(kept[begin:end])
    return scales
