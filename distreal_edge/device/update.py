"""An update: what one device sends back for one round, as safetensors. `docs/protocol.md` specifies it.

Its tensors are the change of every trainable tensor (`change/<name>`), the batch-norm statistics that the device
measured on the model it received (`statistics/<name>`, none or all), and which filters survived when: `survivors`,
uint8 `[kinds, ceil(filters / 8)]`, the bit-packed masks of the distinct subsets it trained, and `survivor_images`,
int64 `[kinds]`, the images trained with each.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from distreal_edge.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from distreal_edge.dropout import Subset
    from distreal_edge.network import Plan

__all__ = ["MAXIMUM_KINDS", "SurvivorLog", "Update", "UpdateHeader", "decode_update", "encode_update", "most_bytes"]

MAXIMUM_KINDS = 65536
_HEADER_KEY = "distreal_edge_update"
_MAXIMUM_HEADER_BYTES = 8 * 2**20

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
_Identifier = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class UpdateHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who sends what for which round.

    `images` counts every image of every mini-batch, `loss` is their mean training loss, `macs` the multiply-accumulates
    spent on them, `statistics_images` how many images the statistics were measured on.
    """

    format: int = 1
    uid: _Identifier
    device: _Identifier
    round: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    model: _Digest
    images: _Count
    mini_batches: _Count
    macs: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    loss: float | None = None
    statistics_images: _Count = 0


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """An update in memory. `kept` is bool `[kinds, filters + 1]`, `kept_images` int64 `[kinds]`."""

    header: UpdateHeader
    changes: Mapping[str, NDArray[np.float32]]
    statistics: Mapping[str, NDArray[np.float32]]
    kept: NDArray[np.bool_]
    kept_images: NDArray[np.int64]


class SurvivorLog:
    """Collect which filters survived, and on how many images: one entry per distinct subset."""

    def __init__(self, plan: Plan) -> None:
        """Start an empty log for a plan's filters."""
        self._sizes = plan.sizes
        self._images: dict[bytes, int] = {}

    def add(self, subset: Subset, images: int) -> None:
        """Note that a mini-batch of so many images trained this subset."""
        key = np.packbits(subset.mask(self._sizes)[:-1]).tobytes()
        self._images[key] = self._images.get(key, 0) + images

    @property
    def kinds(self) -> int:
        """How many distinct subsets there were."""
        return len(self._images)

    def arrays(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return `Update.kept` and `Update.kept_images`."""
        width = ceil(sum(self._sizes) / 8)
        packed = np.frombuffer(b"".join(self._images), dtype=np.uint8).reshape(len(self._images), width)
        kept = _unpack(packed, sum(self._sizes))
        return kept, np.array(list(self._images.values()), dtype=np.int64)


def _unpack(packed: NDArray[np.uint8], filters: int) -> NDArray[np.bool_]:
    kept = np.ones((packed.shape[0], filters + 1), dtype=np.bool_)
    if filters:
        kept[:, :-1] = np.unpackbits(packed, axis=1, count=filters).astype(np.bool_)
    return kept


def most_bytes(plan: Plan) -> int:
    """Return more than any sound update of this plan can have: the cap for what a device may send."""
    tensors = 4 * sum(prod(shape) for shape in plan.tensors.values())
    return tensors + MAXIMUM_KINDS * (ceil(plan.filters / 8) + 8) + _MAXIMUM_HEADER_BYTES


def encode_update(update: Update) -> bytes:
    """Return the bytes of an update."""
    tensors: dict[str, NDArray[np.generic]] = {f"change/{name}": array for name, array in update.changes.items()}
    tensors.update({f"statistics/{name}": array for name, array in update.statistics.items()})
    tensors["survivors"] = np.packbits(update.kept[:, :-1], axis=1)
    tensors["survivor_images"] = update.kept_images
    metadata = {_HEADER_KEY: msgspec.json.encode(update.header).decode()}
    data: bytes = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata=metadata
    )
    return data


def decode_update(data: bytes, plan: Plan) -> Update:
    """Read an update for this plan; raise `ProtocolError` that says what is wrong with it.

    Checks form and values: names, types, shapes, finite numbers, and that the counts agree with each other. Whether
    the update is for the round at hand is the aggregator's question.
    """
    if len(data) > most_bytes(plan):
        raise ProtocolError(f"size: {len(data)} bytes are more than an update of this network can have")
    header, stated = _read_header(data)
    expected = {f"change/{name}": parameter.shape for name, parameter in plan.parameters.items()}
    if header.statistics_images:
        expected |= {f"statistics/{name}": shape for name, shape in plan.statistics.items()}
    if set(stated) != {*expected, "survivors", "survivor_images"}:
        strange = sorted(set(stated) ^ {*expected, "survivors", "survivor_images"})
        raise ProtocolError(f"shape: the update's tensors are not the network's: {', '.join(strange[:3])}")
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"form: not a sound safetensors file: {error}") from None
    for name, shape in expected.items():
        _check_tensor(name, tensors[name], shape)
    kept, kept_images = _read_survivors(tensors, plan, header)
    return Update(
        header,
        {name: tensors[f"change/{name}"] for name in plan.parameters},
        {name: tensors[f"statistics/{name}"] for name in plan.statistics} if header.statistics_images else {},
        kept,
        kept_images,
    )


def _read_header(data: bytes) -> tuple[UpdateHeader, list[str]]:
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= min(_MAXIMUM_HEADER_BYTES, len(data) - 8):
        raise ProtocolError("form: the update's header is cut off or too long")
    try:
        document = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(document.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
        header = msgspec.json.decode(metadata.get(_HEADER_KEY, ""), type=UpdateHeader)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(f"form: the update's header is not valid: {error}") from None
    if header.format != 1:
        raise ProtocolError(f"form: update format {header.format} is not known")
    return header, list(document)


def _check_tensor(name: str, tensor: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if tensor.dtype != np.float32:
        raise ProtocolError(f"type: {name} must be float32, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ProtocolError(f"shape: {name} must be {shape}, got {tensor.shape}")
    if not np.all(np.isfinite(tensor)):
        raise ProtocolError(f"finite: {name} holds NaN or infinity")
    if name.startswith("statistics/") and name.endswith(".running_var") and np.any(tensor < 0):
        raise ProtocolError(f"finite: {name} holds a negative variance")


def _read_survivors(
    tensors: Mapping[str, NDArray[np.generic]], plan: Plan, header: UpdateHeader
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    packed, images = tensors["survivors"], tensors["survivor_images"]
    if packed.dtype != np.uint8 or images.dtype != np.int64 or images.ndim != 1 or len(images) > MAXIMUM_KINDS:
        raise ProtocolError("type: survivors must be uint8 [kinds, bytes] and survivor_images int64 [kinds]")
    if packed.shape != (len(images), ceil(plan.filters / 8)):
        raise ProtocolError(f"shape: survivors are {packed.shape}, not ({len(images)}, {ceil(plan.filters / 8)})")
    counts = images.astype(np.int64)
    if np.any(counts < 1) or sum(counts.tolist()) != header.images:
        raise ProtocolError("samples: the images of the survivors do not add up to the update's images")
    if header.mini_batches > header.images or (header.images and not header.mini_batches):
        raise ProtocolError("samples: the update's images and mini-batches contradict each other")
    return _unpack(packed.astype(np.uint8), plan.filters), counts
