"""The training step that ours is compared with: lean PyTorch, as an author would write it for one network.

There are two forms. `smaller` is a really smaller network, with nothing left of the filters that were dropped.
`selected` holds the full weights and takes the survivors by index in every step, under autograd: what dropping filters
per mini-batch takes in PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from distreal_edge.network.operations import (
    INPUT,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    Operation,
    Relu,
    Relu6,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distreal_edge.dropout import Subset
    from distreal_edge.network import Network, Plan

__all__ = ["FORMS", "TorchStep"]

FORMS = ("smaller", "selected")
# Switching oneDNN off also sets a switch for graphics cards, which PyTorch comments on.
warnings.filterwarnings("ignore", message="TF32 acceleration")

Read = Callable[[], Tensor]
Compute = Callable[..., Tensor]


class TorchStep:
    """One training step of a network over a subset, with SGD, momentum and weight decay; call it to train.

    `channels_last` is the layout of images and weights; `onednn` off leaves PyTorch its own kernels.
    """

    def __init__(
        self,
        network: Network,
        subset: Subset,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        form: str,
        channels_last: bool,
        onednn: bool = True,
        lr: float,
    ) -> None:
        """Copy the network's weights."""
        if network.plan.rescale:
            message = "networks that rescale are not compared here"
            raise NotImplementedError(message)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self._images = torch.from_numpy(images).clone(memory_format=layout)  # N, C, H, W
        self._labels = torch.from_numpy(labels)
        self._onednn = onednn
        parameters: dict[str, Tensor] = {}
        reads = _reads(network, subset, form, layout, parameters)
        self._operations = _compile(network.plan, reads)
        self._output = network.plan.output
        self._optimiser = torch.optim.SGD(list(parameters.values()), lr=lr, momentum=0.9, weight_decay=5e-4, fused=True)

    def __call__(self) -> float:
        """Train once; return the loss before the update."""
        with nullcontext() if self._onednn else torch.backends.mkldnn.flags(enabled=False):
            loss = F.cross_entropy(self._forward(), self._labels)
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self._optimiser.step()
            return loss.item()

    def _forward(self) -> Tensor:
        values = {INPUT: self._images}
        for compute, name, inputs, last in self._operations:
            values[name] = compute(*[values[value] for value in inputs])
            for value in last:
                del values[value]  # a local variable would be gone, too
        return values[self._output]


def _reads(
    network: Network, subset: Subset, form: str, layout: torch.memory_format, parameters: dict[str, Tensor]
) -> dict[str, Read]:
    """Return how every trainable tensor's survivors are read; what is trained is put into `parameters`."""
    kept = subset.mask(network.plan.sizes)
    reads: dict[str, Read] = {}
    for name, parameter in network.plan.parameters.items():
        full = torch.from_numpy(network.weights[name]).clone()
        rows = torch.from_numpy(kept[parameter.rows.reshape(-1)]).nonzero().flatten()
        columns = None
        if parameter.columns is not None and len(parameter.columns) == 1:
            columns = torch.from_numpy(kept[parameter.columns[0]]).nonzero().flatten()
        elif parameter.columns is not None and parameter.columns.shape[1] > 1:
            message = f"{name}: grouped convolutions that are not depthwise are not compared here"
            raise NotImplementedError(message)
        if form == "smaller":
            full = full[rows] if columns is None else full[rows][:, columns]
        if full.ndim == 4:
            full = full.clone(memory_format=layout)
        parameters[name] = full.requires_grad_()
        reads[name] = _read_all(full) if form == "smaller" else _read_survivors(full, rows, columns)
    return reads


def _read_all(full: Tensor) -> Read:
    return lambda: full


def _read_survivors(full: Tensor, rows: Tensor, columns: Tensor | None) -> Read:
    if columns is None:
        return lambda: full.index_select(0, rows)
    return lambda: full.index_select(0, rows).index_select(1, columns)


def _compile(plan: Plan, reads: dict[str, Read]) -> list[tuple[Compute, str, tuple[str, ...], list[str]]]:
    """Return what to compute, in order: a function, the value it makes, those it reads, and those read last by it."""
    made_by = {operation.name: operation for operation in plan.operations}
    compiled = []
    for operation in plan.operations:
        # As authors do: an activation or addition overwrites what nobody else needs.
        first = operation.inputs[0]
        overwrites = isinstance(made_by.get(first), (BatchNorm, Add)) and len(plan.readers[first]) == 1
        last = [value for value in dict.fromkeys(operation.inputs) if plan.readers[value][-1] is operation]
        compiled.append((_function(plan, operation, reads, overwrites), operation.name, operation.inputs, last))
    return compiled


def _function(plan: Plan, operation: Operation, reads: dict[str, Read], overwrites: bool) -> Compute:
    match operation:
        case Conv2d():
            weight, bias = reads[f"{operation.name}.weight"], reads.get(f"{operation.name}.bias", lambda: None)
            window = operation.stride, operation.padding, operation.dilation
            depthwise = operation.groups == plan.shapes[operation.inputs[0]][0] > 1
            return lambda x: F.conv2d(x, weight(), bias(), *window, x.shape[1] if depthwise else 1)
        case Linear():
            weight, bias = reads[f"{operation.name}.weight"], reads.get(f"{operation.name}.bias", lambda: None)
            return lambda x: F.linear(x, weight(), bias())
        case BatchNorm():
            weight, bias = reads[f"{operation.name}.weight"], reads[f"{operation.name}.bias"]
            epsilon = operation.epsilon
            return lambda x: F.batch_norm(x, None, None, weight(), bias(), training=True, eps=epsilon)
        case Relu():
            return lambda x: F.relu(x, inplace=overwrites)
        case Relu6():
            return lambda x: F.relu6(x, inplace=overwrites)
        case Add():
            return (lambda x, other: x.add_(other)) if overwrites else (lambda x, other: x + other)
        case Concat():
            return lambda *parts: torch.cat(parts, dim=1)
        case MaxPool():
            return lambda x: F.max_pool2d(x, operation.kernel, operation.stride, operation.padding)
        case AvgPool():
            return lambda x: F.avg_pool2d(x, operation.kernel, operation.stride, operation.padding)
        case GlobalAvgPool():
            return lambda x: F.adaptive_avg_pool2d(x, 1)
        case Flatten():
            return lambda x: x.flatten(1)
    message = f"{type(operation).__name__} is not compared here"
    raise NotImplementedError(message)
