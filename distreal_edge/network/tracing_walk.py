"""Turn the calls that forward made into operations, and say what is wrong with those that a plan cannot hold."""

from __future__ import annotations

import inspect
import operator
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx

from distreal_edge.errors import NetworkError
from distreal_edge.network.operations import INPUT
from distreal_edge.network.tracing_functions import FUNCTIONS, METHODS
from distreal_edge.network.tracing_hints import advice_for
from distreal_edge.network.tracing_modules import find_handler
from distreal_edge.network.tracing_values import Recorder, Refusal, Value
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from distreal_edge.network.operations import Shape
    from distreal_edge.network.tracing_values import Draft

__all__ = ["read_operations"]

_IN_PLACE_OPERATORS = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv})


def read_operations(module: nn.Module, graph: fx.Graph, input_shape: Shape) -> list[Draft]:
    """Return drafts of the operations that the module's class scores depend on, in the order of forward.

    Raises `NetworkError` for the first call among them that a plan cannot hold.
    """
    recorder = Recorder(input_shape)
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            first = not known
            known[node] = recorder.input if first else _refuse_argument(node)
        elif node.op == "output":
            return recorder.live(_check_output(fx.map_arg(node.args[0], lambda read: known[read])))
        else:
            _read_call(recorder, module, node, known)
    raise AssertionError("a graph of torch.fx ends with its output")


def _refuse_argument(node: fx.Node) -> Refusal:
    return Refusal(
        f"cannot trace forward: it uses its argument {node.target!r}, and a network has exactly one input, the images"
    )


def _read_call(recorder: Recorder, module: nn.Module, node: fx.Node, known: dict[fx.Node, Any]) -> None:
    args: Any = fx.map_arg(node.args, lambda read: known[read])
    kwargs: Any = fx.map_arg(node.kwargs, lambda read: known[read])
    refused = next((known[read] for read in node.all_input_nodes if isinstance(known[read], Refusal)), None)
    written = _written_value(module, node, args, kwargs)
    result: Any = refused
    if refused is None:
        recorder.place = _describe_place(node)
        try:
            result = _call(recorder, module, node, args, kwargs)
        except NetworkError as error:
            result = Refusal(f"cannot trace {_describe_call(module, node)}: {error}")
    if written is not None:
        _write(result, written, known)
    known[node] = result


def _call(recorder: Recorder, module: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    handler: Callable[..., Any]
    if not node.meta["trains"]:
        raise NetworkError("it stands under torch.no_grad(), but a network trains every weight; remove no_grad")
    match node.op, node.target:
        case "get_attr", _:
            raise NetworkError(
                "a plan has no loose tensors; weights belong to Conv2d, BatchNorm2d, BatchNorm1d and Linear modules"
            )
        case "call_module", str(path):
            part = module.get_submodule(path)
            found = find_handler(part)
            if found is None:
                raise NetworkError(advice_for(type(part).__name__))
            handler = partial(found, recorder, path, part)
        case "call_method", str(method):
            handler = _recording(recorder, METHODS.get(method), method)
        case _, function:
            handler = _recording(recorder, FUNCTIONS.get(function), _target_name(node))
    named = {"value" if name == "input" else name: argument for name, argument in kwargs.items()}
    try:
        bound = inspect.signature(handler).bind(*args, **named)
    except TypeError as error:
        raise NetworkError(f"a plan cannot hold how it is called: {error}") from None
    return handler(*bound.args, **bound.kwargs)


def _recording(recorder: Recorder, handler: Callable[..., Any] | None, name: str) -> Callable[..., Any]:
    if handler is None:
        raise NetworkError(advice_for(name))
    return partial(handler, recorder)


def _written_value(module: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Value | None:
    # The value that the call changes in place, if it does.
    match node.op, node.target:
        case "call_module", str(path):
            in_place = getattr(module.get_submodule(path), "inplace", False) is True
        case "call_method" | "call_function", target:
            name = _target_name(node)
            in_place = target in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
            in_place = in_place or kwargs.get("inplace") is True
        case _:
            in_place = False
    written = kwargs.get("out", args[0] if in_place and args else None)
    return written if isinstance(written, Value) else None


def _write(result: Any, written: Value, known: dict[fx.Node, Any]) -> None:
    # From now on, every name of the written value means the result. Its views change too, in ways no plan can hold.
    for node, value in known.items():
        if not isinstance(value, Value) or value.memory != written.memory:
            continue
        known[node] = result
        if value.name != written.name:
            known[node] = Refusal(
                f"cannot trace {node.name!r}: it is a view of a value that is changed in place; do not use "
                "inplace=True there"
            )


def _check_output(output: Any) -> Value:
    if isinstance(output, (tuple, list, dict)):
        raise NetworkError(
            f"cannot trace forward: it returns a collection of {count_of(len(output), 'value')}; it must return the "
            "class scores alone, also in training mode"
        )
    if isinstance(output, Refusal):
        raise NetworkError(output.message)
    if not isinstance(output, Value):
        raise NetworkError(f"cannot trace forward: it returns {output!r}; it must return the class scores")
    if output.name == INPUT:
        raise NetworkError("cannot trace forward: it returns the images that it was given; it must return class scores")
    if output.axes != 2:
        raise NetworkError(
            f"cannot trace forward: it returns maps {output.shape}; it must return class scores [N, classes]: end with "
            "a pooling, a flatten and a Linear"
        )
    return output


def _target_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _describe_call(module: nn.Module, node: fx.Node) -> str:
    name = _target_name(node)
    match node.op:
        case "call_module":
            what = f"{type(module.get_submodule(name)).__name__} {name!r}"
        case "get_attr":
            what = "a constant tensor" if name.startswith("_tensor_constant") else f"the tensor {name!r}"
        case "call_method":
            what = f"Tensor.{name}()"
        case _:
            what = f"{name}()"
    place = _describe_place(node)
    return f"{what} ({place})" if place else what


def _describe_place(node: fx.Node) -> str:
    # "net.py:12, in 'layer1.0'": the author's line, and the module whose forward makes the call.
    inside = node.meta["inside"] if node.op != "call_module" else ""
    parts = [node.meta["place"], f"in {inside!r}" if inside else ""]
    return ", ".join(part for part in parts if part)
