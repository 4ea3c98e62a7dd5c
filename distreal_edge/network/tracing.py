"""Tracing: from an author's PyTorch module to a plan with weights, and back into the module's `state_dict`.

`docs/tracing.md` says what can be traced. Forward is followed once by torch.fx (`tracing_graph`), with stand-ins for
tensors; the calls that it made are turned into operations (`tracing_walk`, with the tables of `tracing_modules` and
`tracing_functions`); what the output does not depend on is left out, and the rest gets its names here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from distreal_edge.errors import NetworkError
from distreal_edge.network.operations import INPUT, BatchNorm, has_weights
from distreal_edge.network.plan import Plan
from distreal_edge.network.preprocessing import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from distreal_edge.network.operations import Operation, Shape
    from distreal_edge.network.tracing_values import Draft

__all__ = ["state_dict", "trace"]

_logger = logging.getLogger(__name__)

_COUNTER = "num_batches_tracked"
"""The one tensor of PyTorch's batch norm that a network does not keep."""


def trace(
    module: Any,
    input_shape: Shape,
    *,
    rescale: bool | None = None,
    preprocessing: Preprocessing | None = None,
) -> tuple[Plan, dict[str, NDArray[np.float32]]]:
    """Return the plan of a `torch.nn.Module` and copies of its weights; the module stays as it is.

    `input_shape` is `(C, H, W)`, without the batch. `rescale` None means: on exactly when there is no batch norm. The
    plan holds what the module does in training mode. Raises `NetworkError` that names the operation and its place in
    the module for what a plan cannot hold. Needs PyTorch.
    """
    _need_torch()
    from distreal_edge.network.tracing_graph import follow_forward  # noqa: PLC0415 - torch is not on a device
    from distreal_edge.network.tracing_walk import read_operations  # noqa: PLC0415

    shape = _check_shape(input_shape)
    drafts = read_operations(module, follow_forward(module), shape)
    _check_sharing(drafts)
    operations = _name_operations(drafts)
    if rescale is None:
        rescale = not any(isinstance(operation, BatchNorm) for operation in operations)
    plan = Plan(shape, operations, rescale, preprocessing or Preprocessing())
    weights = {
        f"{draft.label}.{name}": _copy(tensor, f"{draft.label}.{name}")
        for draft in drafts
        for name, tensor in draft.tensors.items()
    }
    _report_unused(module, plan)
    return plan, weights


def state_dict(plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Return copies of the weights as tensors for the module's strict `load_state_dict`. Needs PyTorch.

    Batch norm's `num_batches_tracked` starts from 0: nothing in a network depends on it.
    """
    _need_torch()
    import torch  # noqa: PLC0415 - not on a device

    tensors: dict[str, Any] = {name: torch.from_numpy(np.array(weights[name], order="C")) for name in plan.tensors}
    for operation in plan.operations:
        if isinstance(operation, BatchNorm):
            tensors[f"{operation.name}.{_COUNTER}"] = torch.tensor(0, dtype=torch.int64)
    return tensors


def _need_torch() -> None:
    try:
        import torch  # noqa: F401, PLC0415 - not on a device
    except ImportError:
        message = "tracing a module needs PyTorch, which is not installed: pip install 'distreal-edge[torch]'"
        raise NetworkError(message) from None


def _check_shape(input_shape: Any) -> Shape:
    shape: tuple[Any, ...] = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        message = f"input_shape must be (channels, height, width) of one image, without the batch; got {input_shape}"
        raise NetworkError(message)
    return shape


def _check_sharing(drafts: Sequence[Draft]) -> None:
    places: dict[str, str] = {}
    owners: dict[int, str] = {}
    for draft in drafts:
        if not draft.tensors:
            continue
        if draft.label == INPUT:
            message = f"a module is named {INPUT!r}, which is the name of the network's input; rename it"
            raise NetworkError(message)
        if draft.label in places:
            message = (
                f"cannot trace {draft.label!r}: forward uses it more than once ({places[draft.label]}; {draft.place}), "
                "and a plan shares no weights; give each use a module of its own"
            )
            raise NetworkError(message)
        places[draft.label] = draft.place
        for name, tensor in draft.tensors.items():
            path = f"{draft.label}.{name}"
            if id(tensor) in owners:
                message = (
                    f"cannot trace {path!r}: it is the same tensor as {owners[id(tensor)]!r}, and a plan shares no "
                    "weights; give each module a tensor of its own"
                )
                raise NetworkError(message)
            owners[id(tensor)] = path


def _name_operations(drafts: Sequence[Draft]) -> tuple[Operation, ...]:
    # The names that PlanBuilder gives: paths for what has weights, kind and number in plan order for the rest.
    names = {INPUT: INPUT}
    numbers: Counter[str] = Counter()
    operations: list[Operation] = []
    for draft in drafts:
        kind = draft.label
        name = kind if has_weights(draft.operation) else f"{kind}#{numbers[kind]}"
        numbers[kind] += 1
        inputs = tuple(names[value] for value in draft.operation.inputs)
        names[draft.operation.name] = name
        operations.append(msgspec.structs.replace(draft.operation, name=name, inputs=inputs))
    return tuple(operations)


def _copy(tensor: Any, name: str) -> NDArray[np.float32]:
    import torch  # noqa: PLC0415 - not on a device

    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
        message = f"cannot trace {name!r}: it has no values yet; run the module once on an image first"
        raise NetworkError(message)
    if tensor.dtype != torch.float32:
        message = f"cannot trace {name!r}: it is {tensor.dtype}, and weights are float32; call module.float() first"
        raise NetworkError(message)
    if isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad:
        message = (
            f"cannot trace {name!r}: it is frozen, but a network trains every weight; call module.requires_grad_() "
            "first if that is what you want"
        )
        raise NetworkError(message)
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float32, order="C")


def _report_unused(module: Any, plan: Plan) -> None:
    unused = [name for name in module.state_dict() if name not in plan.tensors and not name.endswith(f".{_COUNTER}")]
    if unused:
        _logger.warning(
            "%d tensors of the module have no part in its class scores and are left out (%s): "
            "load_state_dict will need strict=False",
            len(unused),
            ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else ""),
        )
