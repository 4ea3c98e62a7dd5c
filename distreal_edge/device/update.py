"""An update: what one device sends back for one round, as safetensors. `docs/protocol.md` specifies it.

It holds the change of every trainable element (`changes`, or `packed` when it is compressed), the batch-norm statistics
that the device measured on the model it received (`statistics`, none or all), and which filters survived when
(`survivors`, `survivor_images`). Its digest is over what it means, not over how that was written down.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import safetensors.numpy

from distreal_edge.device.encoding import (
    BLOCK,
    Compression,
    Encoding,
    Scales,
    dequantise,
    pack,
    quantise,
    scale_lengths,
)
from distreal_edge.device.pieces import elements_of
from distreal_edge.device.survivors import MAXIMUM_KINDS, SurvivorLog, Survivors, most_kinds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from distreal_edge.network import Plan

__all__ = [
    "HEADER_KEY",
    "MAXIMUM_HEADER_BYTES",
    "MAXIMUM_KINDS",
    "StatedHeader",
    "SurvivorLog",
    "Update",
    "UpdateHeader",
    "encode_update",
    "most_bytes",
    "most_kinds",
    "most_packed_bytes",
]

HEADER_KEY = "distreal_edge_update"
MAXIMUM_HEADER_BYTES = 2**16

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_Identifier = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class UpdateHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who sends what for which round.

    `images` counts every image of every mini-batch, `loss` is their mean training loss, `macs` the multiply-accumulates
    spent on them, `statistics_images` how many images the statistics were measured on.
    """

    format: int = 1
    uid: _Identifier
    device: _Identifier
    round: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    model: _Digest
    images: _Count
    mini_batches: _Count
    macs: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    loss: float | None = None
    statistics_images: _Count = 0


class StatedHeader(UpdateHeader, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in the file: also how the changes are written down, and the digest of what they mean.

    The digest is the SHA-256 of the changes as float32, the statistics, the survivors and their images.
    """

    encoding: Encoding = "float32"
    compression: Compression = "none"
    digest: _Digest


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """An update in memory. `kept` is bool `[kinds, filters + 1]`, `kept_images` int64 `[kinds]`.

    `changes` and `statistics` are in the plan's order.
    """

    header: UpdateHeader
    changes: Mapping[str, NDArray[np.float32]]
    statistics: Mapping[str, NDArray[np.float32]]
    kept: NDArray[np.bool_]
    kept_images: NDArray[np.int64]


def most_packed_bytes(elements: int, itemsize: int) -> int:
    """Return at least what so many elements can have when they are compressed."""
    blocks = ceil(elements / BLOCK)
    return itemsize * elements + (itemsize * elements >> 7) + 128 * blocks


def most_bytes(plan: Plan) -> int:
    """Return at least what any sound update of this plan can have: the cap for what a device may send."""
    elements = elements_of(plan)
    scales = sum(shape[0] for shape in plan.tensors.values())
    statistics = sum(prod(shape) for shape in plan.statistics.values())
    changes = most_packed_bytes(elements, 4) + 4 * (scales + statistics + ceil(elements / BLOCK))
    return changes + most_kinds(plan) * (ceil(plan.filters / 8) + 8) + MAXIMUM_HEADER_BYTES


def encode_update(update: Update, encoding: Encoding = "float32", compression: Compression = "none") -> bytes:
    """Return the bytes of an update; its changes must be finite."""
    changes = joined(update.changes)
    lengths = scale_lengths(change.shape for change in update.changes.values())
    values, scales = quantise(changes, encoding, lengths)
    tensors: dict[str, NDArray[np.generic]] = {}
    if compression == "zstd":
        packed, sizes = pack(values)
        tensors["packed"] = np.frombuffer(packed, dtype=np.uint8)
        tensors["packed_bytes"] = np.array(sizes, dtype=np.int32)
    else:
        tensors["changes"] = values
    if encoding == "int8":
        tensors["scales"] = scales
    if update.statistics:
        tensors["statistics"] = joined(update.statistics)
    survivors = Survivors.of(update.kept, update.kept_images)
    tensors["survivors"] = survivors.packed
    tensors["survivor_images"] = survivors.images
    header = StatedHeader(
        **msgspec.structs.asdict(update.header),
        encoding=encoding,
        compression=compression,
        digest=_digest(values, Scales(scales, lengths) if encoding == "int8" else None, tensors),
    )
    data: bytes = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        metadata={HEADER_KEY: msgspec.json.encode(header).decode()},
    )
    return data


def joined(tensors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return tensors as one vector, one after the other."""
    return np.concatenate([tensor.reshape(-1) for tensor in tensors.values()], dtype=np.float32, casting="no")


def _digest(values: NDArray[np.generic], scales: Scales | None, tensors: Mapping[str, NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    decoded = np.empty(min(BLOCK, len(values)), dtype="<f4")
    for begin in range(0, len(values), BLOCK):
        block = values[begin : begin + BLOCK]
        digest.update(dequantise(block, scales, begin, decoded[: len(block)]).data)
    for name in ("statistics", "survivors", "survivor_images"):
        if name in tensors:
            digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
