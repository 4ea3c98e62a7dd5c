"""The modules of torch.nn that a plan can hold, and the operations that they become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.utils import parametrize

from distreal_edge.errors import NetworkError
from distreal_edge.network import tracing_functions as functions
from distreal_edge.network.operations import BatchNorm, Conv2d, Linear
from distreal_edge.network.tracing_functions import tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from distreal_edge.network.tracing_values import Recorder, Value

    Handler = Callable[[Recorder, str, Any, Value], Value]

__all__ = ["find_handler"]


def find_handler(module: nn.Module) -> Handler | None:
    """Return what turns this module into operations, or None when its forward is not one that a plan knows.

    A subclass counts as its base only as long as it computes the same.
    """
    kind = type(module)
    for base in kind.__mro__:
        if base not in _HANDLERS:
            continue
        same = all(
            getattr(kind, method, None) is getattr(base, method, None) for method in ("forward", "_conv_forward")
        )
        return _HANDLERS[base] if same and "forward" not in vars(module) else None
    return None


def _conv2d(recorder: Recorder, path: str, module: nn.Conv2d, value: Value) -> Value:
    tensors = _tensors(module, "weight", "bias")
    _check_channels(value, module.in_channels, axes=4)
    if module.padding_mode != "zeros":
        raise NetworkError(f"padding_mode {module.padding_mode!r} is not possible; a plan pads with zeros only")
    return recorder.add(
        Conv2d,
        value,
        label=path,
        tensors=tensors,
        out_channels=module.out_channels,
        kernel=functions.pair(module.kernel_size, "kernel_size"),
        stride=functions.pair(module.stride, "stride"),
        padding=_padding(module),
        dilation=functions.pair(module.dilation, "dilation"),
        groups=module.groups,
        bias="bias" in tensors,
    )


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    if module.padding == "valid":
        return (0, 0)
    if module.padding != "same":
        return functions.pair(module.padding, "padding")
    reach = [dilation * (side - 1) for side, dilation in zip(module.kernel_size, module.dilation, strict=True)]
    if any(total % 2 for total in reach):
        raise NetworkError(
            f"padding='same' pads a kernel of {tuple(module.kernel_size)} unevenly, which a plan cannot hold; use an "
            "odd kernel, or padding given as a number"
        )
    return (reach[0] // 2, reach[1] // 2)


def _batch_norm(recorder: Recorder, path: str, module: nn.BatchNorm1d | nn.BatchNorm2d, value: Value) -> Value:
    _check_channels(value, module.num_features, axes=4 if isinstance(module, nn.BatchNorm2d) else 2)
    if not module.affine:
        raise NetworkError("affine=False is not possible; keep its weight and bias")
    if not module.track_running_stats or module.running_mean is None:
        raise NetworkError("track_running_stats=False is not possible; keep its running statistics")
    if module.momentum is None:
        raise NetworkError("momentum=None (a cumulative average) is not possible; give it a number such as 0.1")
    return recorder.add(
        BatchNorm,
        value,
        label=path,
        tensors=_tensors(module, "weight", "bias", "running_mean", "running_var"),
        epsilon=float(module.eps),
        momentum=float(module.momentum),
    )


def _linear(recorder: Recorder, path: str, module: nn.Linear, value: Value) -> Value:
    tensors = _tensors(module, "weight", "bias")
    _check_channels(value, module.in_features, axes=2)
    return recorder.add(
        Linear,
        value,
        label=path,
        tensors=tensors,
        out_features=module.out_features,
        bias="bias" in tensors,
    )


def _max_pool(recorder: Recorder, _path: str, module: nn.MaxPool2d, value: Value) -> Value:
    return functions.max_pool(
        recorder,
        value,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.ceil_mode,
        module.return_indices,
    )


def _avg_pool(recorder: Recorder, _path: str, module: nn.AvgPool2d, value: Value) -> Value:
    return functions.avg_pool(
        recorder,
        value,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    )


def _tensors(module: nn.Module, *names: str) -> Mapping[str, Tensor]:
    if parametrize.is_parametrized(module):
        raise NetworkError(
            "its weights are parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001 - there is no public way to ask
        raise NetworkError(
            "it has forward hooks, which a plan cannot hold (weight_norm, spectral_norm and pruning make such hooks, "
            "and so does a lazy module that never ran); remove them first"
        )
    found = {name: getattr(module, name) for name in names}
    return {name: found[name] for name in names if found[name] is not None}  # a layer may have no bias


def _check_channels(value: Value, expected: int, *, axes: int) -> None:
    if tensor(value).axes != axes:
        wanted, advice = ("maps [N, C, H, W]", "") if axes == 4 else ("features [N, F]", "; put nn.Flatten() before it")
        raise NetworkError(f"it reads {wanted}, but is given {value.shape} for an image{advice}")
    if value.shape[0] != expected:
        raise NetworkError(
            f"it reads {expected} channels or features, but is given {value.shape[0]} (of shape {value.shape}) with "
            "this input_shape"
        )


_HANDLERS: dict[type[nn.Module], Handler] = {
    nn.Conv2d: _conv2d,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.ReLU: lambda recorder, _path, _module, value: functions.relu(recorder, value),
    nn.ReLU6: lambda recorder, _path, _module, value: functions.relu6(recorder, value),
    nn.Hardswish: lambda recorder, _path, _module, value: functions.hardswish(recorder, value),
    nn.Sigmoid: lambda recorder, _path, _module, value: functions.sigmoid(recorder, value),
    nn.AdaptiveAvgPool2d: lambda recorder, _path, module, value: functions.adaptive_avg_pool(
        recorder, value, module.output_size
    ),
    nn.Flatten: lambda recorder, _path, module, value: functions.flatten(
        recorder, value, module.start_dim, module.end_dim
    ),
    nn.Dropout: lambda recorder, _path, module, value: functions.dropout(recorder, value, module.p),
    nn.Identity: lambda _recorder, _path, _module, value: value,
}
