"""An update: what one device sends back for one round, as safetensors. `docs/protocol.md` specifies it.

Its tensors are the change of every trainable tensor (`change/<name>`), the batch-norm statistics that the device
measured on the model it received (`statistics/<name>`, none or all), and which filters survived when: `survivors`,
uint8 `[kinds, ceil(filters / 8)]`, the bit-packed masks of the distinct subsets it trained, and `survivor_images`,
int64 `[kinds]`, the images trained with each. How many kinds there may be depends on the plan: see `most_kinds`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Annotated, Any

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

__all__ = [
    "MAXIMUM_KINDS",
    "SurvivorLog",
    "Update",
    "UpdateHeader",
    "decode_update",
    "encode_update",
    "most_bytes",
    "most_kinds",
]

MAXIMUM_KINDS = 65536
_MAXIMUM_MASK_BYTES = 2**26
"""What all masks of one update may take in memory, a byte per filter."""
_HEADER_KEY = "distreal_edge_update"
_MAXIMUM_HEADER_BYTES = 8 * 2**20

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


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """An update in memory. `kept` is bool `[kinds, filters + 1]`, `kept_images` int64 `[kinds]`."""

    header: UpdateHeader
    changes: Mapping[str, NDArray[np.float32]]
    statistics: Mapping[str, NDArray[np.float32]]
    kept: NDArray[np.bool_]
    kept_images: NDArray[np.int64]


class SurvivorLog:
    """Collect which filters survived, and on how many images: one entry per distinct subset, `most_kinds` at most."""

    def __init__(self, plan: Plan) -> None:
        """Start an empty log for a plan's filters."""
        self._sizes = plan.sizes
        self._most = most_kinds(plan)
        self._images: dict[bytes, int] = {}

    def has_room(self, subset: Subset) -> bool:
        """Return whether a mini-batch of this subset can still be noted."""
        return len(self._images) < self._most or self._key(subset) in self._images

    def add(self, subset: Subset, images: int) -> None:
        """Note that a mini-batch of so many images trained this subset."""
        key = self._key(subset)
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

    def _key(self, subset: Subset) -> bytes:
        return np.packbits(subset.mask(self._sizes)[:-1]).tobytes()


def _unpack(packed: NDArray[np.uint8], filters: int) -> NDArray[np.bool_]:
    kept = np.ones((packed.shape[0], filters + 1), dtype=np.bool_)
    if filters:
        kept[:, :-1] = np.unpackbits(packed, axis=1, count=filters).astype(np.bool_)
    return kept


def most_kinds(plan: Plan) -> int:
    """Return how many distinct subsets an update may tell of; 4,096 for 16,000 filters, never more than 65,536.

    Both sides unpack the masks to a byte per filter, and must not be made to take more memory than that.
    """
    return min(MAXIMUM_KINDS, _MAXIMUM_MASK_BYTES // (plan.filters + 1))


def most_bytes(plan: Plan) -> int:
    """Return at least what any sound update of this plan can have: the cap for what a device may send."""
    tensors = 4 * sum(prod(shape) for shape in plan.tensors.values())
    return tensors + most_kinds(plan) * (ceil(plan.filters / 8) + 8) + _MAXIMUM_HEADER_BYTES


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
    """Read an update for this plan; raise `ProtocolError` whose first word is the reason's key.

    Checks form and values: names, types, shapes, finite numbers, and that the counts agree with each other. Whether
    the update is for the round at hand is the aggregator's question. Memory is bounded by `most_bytes`.
    """
    if len(data) > most_bytes(plan):
        raise ProtocolError(f"size: {len(data)} bytes are more than an update of this network can have")
    header, stated = _read_header(data)
    _check_stated(stated, header, plan)
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ProtocolError(f"form: not a sound safetensors file: {str(error)[:200]}") from None
    changes = {name: tensors[f"change/{name}"] for name in plan.parameters}
    statistics: dict[str, NDArray[np.float32]] = {}
    if header.statistics_images:
        statistics = {name: tensors[f"statistics/{name}"] for name in plan.statistics}
    for name, tensor in (changes | statistics).items():
        if not np.all(np.isfinite(tensor)):
            raise ProtocolError(f"finite: {name} holds NaN or infinity")
    for name, tensor in statistics.items():
        if name.endswith(".running_var") and np.any(tensor < 0):
            raise ProtocolError(f"finite: {name} holds a negative variance")
    _check_counts(tensors["survivor_images"], header)
    return Update(header, changes, statistics, _unpack(tensors["survivors"], plan.filters), tensors["survivor_images"])


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a safetensors header describes a tensor."""

    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


class _Document(msgspec.Struct, frozen=True):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers must never see two updates in one.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _read_header(data: bytes) -> tuple[UpdateHeader, dict[str, _Tensor]]:
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= min(_MAXIMUM_HEADER_BYTES, len(data) - 8):
        raise ProtocolError("form: the update's header is cut off or too long")
    try:
        document = json.loads(data[8 : 8 + length], object_pairs_hook=_no_repeats)
        metadata = msgspec.convert(document, type=_Document).metadata
        header = msgspec.json.decode(metadata[_HEADER_KEY], type=UpdateHeader)
        del document["__metadata__"]
        stated = msgspec.convert(document, type=dict[str, _Tensor])
    except KeyError:
        raise ProtocolError(f"form: the metadata has no {_HEADER_KEY!r}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"form: the update's header is not valid: {str(error)[:200]}") from None
    if header.format != 1:
        raise ProtocolError(f"form: update format {header.format} is not known")
    return header, stated


def _check_stated(stated: Mapping[str, _Tensor], header: UpdateHeader, plan: Plan) -> None:
    """Hold what the header says of the tensors against the plan, before any memory is taken for them."""
    expected = {f"change/{name}": ("F32", parameter.shape) for name, parameter in plan.parameters.items()}
    if header.statistics_images:
        expected |= {f"statistics/{name}": ("F32", shape) for name, shape in plan.statistics.items()}
    survivors = stated.get("survivors")
    kinds = survivors.shape[0] if survivors is not None and survivors.shape else 0
    expected |= {"survivors": ("U8", (kinds, ceil(plan.filters / 8))), "survivor_images": ("I64", (kinds,))}
    strange = sorted(set(stated) ^ set(expected))
    if strange:
        raise ProtocolError(f"shape: the update's tensors are not the network's: {str(strange[:3])[:200]}")
    for name, (dtype, shape) in expected.items():
        if stated[name].dtype != dtype:
            raise ProtocolError(f"type: {name} must be {dtype}, got {stated[name].dtype[:20]}")
        if stated[name].shape != shape:
            raise ProtocolError(f"shape: {name} must be {shape}, got {str(stated[name].shape)[:80]}")
    if kinds > most_kinds(plan):
        raise ProtocolError(f"size: {kinds} kinds of subsets, an update of this network has at most {most_kinds(plan)}")


def _check_counts(kept_images: NDArray[np.int64], header: UpdateHeader) -> None:
    # Summed in whole numbers of Python: int64 might wrap around.
    if np.any(kept_images < 1) or sum(kept_images.tolist()) != header.images:
        raise ProtocolError("samples: the images of the survivors do not add up to the update's images")
    if not len(kept_images) <= header.mini_batches <= header.images:
        raise ProtocolError("samples: images, mini-batches and kinds of subsets contradict each other")
