"""The network's file: safetensors, whose metadata holds the plan as JSON. `docs/network-format.md` specifies it.

A file may come from anywhere. It is read with a cap on every length, nothing in it is ever executed, and what is wrong
with it is said in one sentence.
"""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from distreal_edge.errors import NetworkError, printable
from distreal_edge.network.operations import Operation  # noqa: TC001 - msgspec reads the annotations
from distreal_edge.network.plan import MAXIMUM_GROUPS, MAXIMUM_OPERATIONS, Plan
from distreal_edge.network.preprocessing import Preprocessing  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "MAXIMUM_FILE_BYTES", "MAXIMUM_HEADER_BYTES", "decode_network", "encode_network"]

FORMAT_VERSION = 1
MAXIMUM_FILE_BYTES = 2**30 + 2**24
MAXIMUM_HEADER_BYTES = 4 * 2**20
_METADATA_KEY = "distreal_edge"
_LENGTH_BYTES = 8
_SHOWN_CHARACTERS = 300


class _Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(max_length=160)]
    filters: Annotated[int, msgspec.Meta(ge=1, le=65536)]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    input_shape: tuple[int, int, int]
    operations: Annotated[tuple[Operation, ...], msgspec.Meta(min_length=1, max_length=MAXIMUM_OPERATIONS)]
    groups: Annotated[tuple[_Group, ...], msgspec.Meta(max_length=MAXIMUM_GROUPS)]
    rescale: bool
    preprocessing: Preprocessing


def encode_network(plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the bytes of the file that holds this plan and these weights."""
    document = _Document(
        FORMAT_VERSION,
        (plan.input_shape[0], plan.input_shape[1], plan.input_shape[2]),
        plan.operations,
        tuple(_Group(group.name, group.filters) for group in plan.groups),
        plan.rescale,
        plan.preprocessing,
    )
    metadata = {_METADATA_KEY: msgspec.json.encode(document).decode()}
    ordered = {name: np.ascontiguousarray(weights[name]) for name in plan.tensors}
    data: bytes = safetensors.numpy.save(ordered, metadata=metadata)
    return data


def decode_network(data: bytes, where: str) -> tuple[Plan, dict[str, NDArray[np.float32]]]:
    """Read a plan and its weights; raise `NetworkError` that says what is wrong in `where`."""
    try:
        header = _read_header(data)
        plan = _read_plan(header)
        return plan, _read_weights(data, header, plan)
    except NetworkError as error:
        message = f"{where}: {error}"
        raise NetworkError(message) from None


def _read_header(data: bytes) -> dict[str, Any]:
    if len(data) > MAXIMUM_FILE_BYTES:
        message = f"{len(data)} bytes are more than a network file may have ({MAXIMUM_FILE_BYTES})"
        raise NetworkError(message)
    if len(data) < _LENGTH_BYTES:
        message = f"{len(data)} bytes are too few for a safetensors file; it is cut off or something else"
        raise NetworkError(message)
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > MAXIMUM_HEADER_BYTES:
        message = f"a header of {length} bytes is over the limit of {MAXIMUM_HEADER_BYTES}; this is no network file"
        raise NetworkError(message)
    if len(data) < _LENGTH_BYTES + length:
        message = f"the file ends inside its header ({len(data)} of at least {_LENGTH_BYTES + length} bytes)"
        raise NetworkError(message)
    header = _parse_json(data[_LENGTH_BYTES : _LENGTH_BYTES + length], "the header")
    if not isinstance(header, dict):
        message = "the header is not a JSON object"
        raise NetworkError(message)
    return header


def _parse_json(data: bytes, what: str) -> Any:
    # Stricter than json is by itself: two readers must never see two networks in one file.
    try:
        return json.loads(data.decode(), object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        message = f"{what} is not JSON: {error}"
        raise NetworkError(message) from None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        repeated = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        message = f"the key {_shown(repeated)!r} stands twice"
        raise ValueError(message)
    return found


def _no_constant(name: str) -> Any:
    message = f"{name} is no number of JSON"
    raise ValueError(message)


def _shown(text: str) -> str:
    shown = printable(text[:_SHOWN_CHARACTERS])
    return shown if len(text) <= _SHOWN_CHARACTERS else shown + "..."


def _read_plan(header: dict[str, Any]) -> Plan:
    metadata = header.get("__metadata__")
    text = metadata.get(_METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        message = f"the metadata has no {_METADATA_KEY!r}: safetensors, but not a network of distreal-edge"
        raise NetworkError(message)
    try:
        plain = _parse_json(text.encode(), "the plan")
        version = msgspec.convert(plain, type=_Version).format
        if version != FORMAT_VERSION:
            message = f"format version {version} is not known; this program reads version {FORMAT_VERSION}"
            raise NetworkError(message)
        document = msgspec.convert(plain, type=_Document)
    except (msgspec.ValidationError, UnicodeError) as error:
        message = f"the plan is not valid: {_shown(str(error))}"
        raise NetworkError(message) from None
    plan = Plan(document.input_shape, document.operations, document.rescale, document.preprocessing)
    stated = [(group.name, group.filters) for group in document.groups]
    derived = [(group.name, group.filters) for group in plan.groups]
    if stated != derived:
        first = next((pair for pair in zip(stated, derived, strict=False) if pair[0] != pair[1]), None)
        detail = f"{len(stated)} groups stated, {len(derived)} follow" if first is None else f"{first[0]} is {first[1]}"
        message = f"the stated filter groups are not those that follow from the operations: {detail}"
        raise NetworkError(message)
    return plan


class _Version(msgspec.Struct, frozen=True):
    format: int


def _read_weights(data: bytes, header: dict[str, Any], plan: Plan) -> dict[str, NDArray[np.float32]]:
    present = set(header) - {"__metadata__"}
    for name in plan.tensors:
        if name not in present:
            message = f"tensor {name!r} is missing"
            raise NetworkError(message)
    for name in sorted(present):
        if name not in plan.tensors:
            message = f"tensor {_shown(name)!r} belongs to no operation of the plan"
            raise NetworkError(message)
        entry = header[name]
        shape = plan.tensors[name]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            message = f"tensor {name!r} must be described by dtype, shape and data_offsets"
            raise NetworkError(message)
        if entry["dtype"] != "F32" or entry["shape"] != list(shape):
            stated = _shown(f"{entry['dtype']} {entry['shape']}")
            message = f"tensor {name!r} must be F32 {list(shape)}, the file says {stated}"
            raise NetworkError(message)
    expected = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    expected += 4 * sum(prod(shape) for shape in plan.tensors.values())
    if len(data) != expected:
        message = f"the file has {len(data)} bytes, its header describes {expected}; it is cut off or damaged"
        raise NetworkError(message)
    try:
        weights: dict[str, NDArray[np.float32]] = safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        message = f"not a sound safetensors file: {_shown(str(error))}"
        raise NetworkError(message) from None
    check_weights(plan, weights)
    return {name: weights[name] for name in plan.tensors}


def check_weights(plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise `NetworkError` unless the weights are the plan's: names, shapes, float32, finite, no negative variance."""
    if set(weights) != set(plan.tensors):
        strange = sorted(set(weights) ^ set(plan.tensors))
        message = f"the weights' names are not the plan's: {', '.join(strange[:5])}"
        raise NetworkError(message)
    for name, shape in plan.tensors.items():
        tensor = weights[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            message = f"tensor {name!r} must be float32 {shape}, got {tensor.dtype} {tensor.shape}"
            raise NetworkError(message)
        if not np.all(np.isfinite(tensor)):
            message = f"tensor {name!r} holds NaN or infinity"
            raise NetworkError(message)
        if name in plan.statistics and name.endswith(".running_var") and np.any(tensor < 0):
            message = f"tensor {name!r} holds a negative variance"
            raise NetworkError(message)
