"""Follow a module's forward with torch.fx, remember where every call stands, and leave the module as it was."""

from __future__ import annotations

import inspect
import operator
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError

from distreal_edge.errors import NetworkError
from distreal_edge.network.tracing_modules import find_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

__all__ = ["follow_forward"]

_NOT_THE_AUTHORS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))

# What an author's forward can raise when it is handed a stand-in instead of a tensor.
_FORWARD_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def follow_forward(module: Any) -> fx.Graph:
    """Return the calls of the module's forward, in training mode, as a graph.

    Every node's `meta` has `place`, the author's line ("net.py:12" or ""), `inside`, the path of the module whose
    forward made the call, and `trains`, whether gradients flow through it. Raises `NetworkError` when forward does not
    make the same calls for all images.
    """
    _check_module(module)
    with _left_as_it_was(module), torch.enable_grad():
        try:
            return _Tracer(module).trace(module, _plain_defaults(module))
        except _FORWARD_ERRORS as error:
            place = _author_place(frame for frame, _ in traceback.walk_tb(error.__traceback__))
            where = f" ({place})" if place else ""
            if isinstance(error, NetworkError):
                reason = str(error)
            elif isinstance(error, TraceError) and "control flow" in str(error):
                reason = (
                    "an if, a loop or an assertion depends on the images or on their shape; forward must make the same "
                    "calls for all images, so decide in __init__ instead"
                )
            else:
                reason = (
                    f"it cannot be followed with a stand-in for the images ({type(error).__name__}: {error}); it "
                    "must be a fixed sequence of the operations listed in docs/tracing.md"
                )
            message = f"cannot trace forward of {type(module).__name__}{where}: {reason}"
            raise NetworkError(message) from None


class _Proxy(fx.Proxy):
    # torch.fx would record `x += y` as `x + y`, and lose that every other name of x changes too.
    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parts = frozenset(module.modules())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if m in self._parts:
            return super().call_module(m, forward, args, kwargs)
        if m.state_dict():
            raise NetworkError(
                f"it calls a {type(m).__name__} that is no part of the module; make it in __init__, and keep several "
                "in an nn.ModuleList"
            )
        return forward(*args, **kwargs)  # such as nn.ReLU()(x): as good as the function

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return find_handler(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["place"] = _author_place(_callers())
        node.meta["inside"] = self.scope.module_path
        node.meta["trains"] = torch.is_grad_enabled()
        return node


def _callers() -> Iterator[FrameType]:
    # Outermost first, as in a traceback.
    yield from reversed([frame for frame, _ in traceback.walk_stack(None)])


def _author_place(frames: Iterable[FrameType]) -> str:
    # The innermost line that is neither PyTorch's nor ours, within forward.
    place = ""
    following = False
    for frame in frames:
        file = frame.f_code.co_filename
        if file == __file__ and frame.f_code is follow_forward.__code__:
            following = True
        if following and not file.startswith((*_NOT_THE_AUTHORS, "<")):
            place = f"{Path(file).name}:{frame.f_lineno}"
    return place


def _check_module(module: Any) -> None:
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise NetworkError(f"cannot trace a {kind}: from_torch takes a torch.nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise NetworkError(f"cannot trace {kind}: it is compiled by TorchScript; pass the module it was made from")
    if isinstance(module, nn.DataParallel) or hasattr(module, "_orig_mod"):
        raise NetworkError(f"cannot trace {kind}: it is a wrapper; pass the module that it wraps")
    if find_handler(module) is not None:
        raise NetworkError(f"cannot trace a bare {kind}: put it into an nn.Sequential, so that it has a name")
    if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001 - there is no public way to ask
        raise NetworkError(f"cannot trace {kind}: it has forward hooks, which a plan cannot hold; remove them first")
    parameters = inspect.signature(module.forward).parameters.values()
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind.name not in {"VAR_POSITIONAL", "VAR_KEYWORD"}
    ]
    if len(required) != 1:
        raise NetworkError(
            f"cannot trace {kind}: its forward takes ({', '.join(str(parameter) for parameter in parameters)}), and a "
            "network has exactly one input, the images"
        )


def _plain_defaults(module: nn.Module) -> dict[str, Any]:
    # Given to torch.fx as constants, so that `if mask is not None` is decided and not traced.
    return {
        name: parameter.default
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is None or isinstance(parameter.default, (bool, int, float, str))
    }


@contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    # torch.fx stores constants in the module, and forward itself may store what it likes.
    tables = ("_parameters", "_buffers", "_modules")
    before = [
        (part, dict(vars(part)), {table: dict(vars(part)[table]) for table in tables}) for part in module.modules()
    ]
    try:
        for part in module.modules():
            part.training = True  # not .train(), which a module may have overridden
        yield
    finally:
        for part, attributes, contents in before:
            vars(part).clear()
            vars(part).update(attributes)
            for table, content in contents.items():
                attributes[table].clear()
                attributes[table].update(content)
