"""Read an update, from a file or from memory, in little memory: checked once as a whole, then a part at a time."""

from __future__ import annotations

import hashlib
import json
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from distreal_edge.device.encoding import BLOCK, DTYPES, Scales, dequantise, scale_lengths, unpack_block
from distreal_edge.device.pieces import elements_of, offsets_of, pieces_of
from distreal_edge.device.survivors import Survivors, most_kinds
from distreal_edge.device.update import (
    HEADER_KEY,
    MAXIMUM_HEADER_BYTES,
    StatedHeader,
    Update,
    UpdateHeader,
    most_bytes,
    most_packed_bytes,
)
from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from distreal_edge.network import Plan

__all__ = ["UpdateReader", "decode_update", "read_update"]

_ITEM_BYTES = {"F32": 4, "F16": 2, "I8": 1, "U8": 1, "I32": 4, "I64": 8}
_AT_ONCE = 2 * BLOCK


def read_update(source: Path | bytes, plan: Plan) -> UpdateReader:
    """Check an update for this plan, in a file or in memory; raise `ProtocolError` whose first word is the reason.

    Form and values are checked: names, types, sizes, finite numbers, that the counts agree with each other, that
    nothing changed but what was trained, and the digest. Whether the update is for the round at hand is the
    aggregator's question. Whatever it holds, this takes memory for its survivors and a few blocks of its changes.
    Raises `StateError` when the file cannot be read.
    """
    reader = UpdateReader(source, plan)
    reader.check()
    return reader


def decode_update(data: bytes, plan: Plan) -> Update:
    """Check an update and take all of it into memory; raise what `read_update` raises."""
    reader = read_update(data, plan)
    elements = elements_of(plan)
    vector = np.empty(elements, dtype=np.float32)
    reader.read(0, elements, vector)
    changes = {
        name: vector[begin:end].reshape(plan.parameters[name].shape) for name, (begin, end) in offsets_of(plan).items()
    }
    survivors = reader.survivors()
    return Update(reader.header, changes, reader.statistics(), survivors.kept(), survivors.images)


class UpdateReader:
    """An update as it lies there. No file is held open, so that there may be any number of them.

    `squares` is the sum of the squares of its changes, `largest` the largest absolute change; both are known once it
    was checked.
    """

    def __init__(self, source: Path | bytes, plan: Plan) -> None:
        """Read the header and hold it against the plan; raise `ProtocolError`, or `StateError` for the disk."""
        self._source = _File(source) if isinstance(source, Path) else _Memory(source)
        self.plan = plan
        if self._source.size_bytes > most_bytes(plan):
            message = f"size: {self._source.size_bytes} bytes are more than an update of this network can have"
            raise ProtocolError(message)
        self.stated, tensors, data_begin = _read_header(self._source)
        self.header = msgspec.convert(
            {name: getattr(self.stated, name) for name in UpdateHeader.__struct_fields__}, type=UpdateHeader
        )
        self.squares = self.largest = 0.0
        self._elements = elements_of(plan)
        self._tensors = tensors
        _check_stated(tensors, self.stated, plan, self._elements)
        self._begins = _check_places(tensors, data_begin, self._source.size_bytes)
        self._dtype = DTYPES[self.stated.encoding][1]
        self._scales: Scales | None = None
        if self.stated.encoding == "int8":
            scales = self._tensor("scales", np.dtype("<f4"))
            if not (np.isfinite(scales).all() and np.all(scales >= 0)):
                raise ProtocolError("finite: a scale is negative, NaN or infinity")
            self._scales = Scales(scales, scale_lengths(p.shape for p in plan.parameters.values()))
        self._frames = self._frame_begins() if self.stated.compression == "zstd" else None
        self._unpacked: tuple[int, NDArray[np.generic]] = (-1, np.zeros(0, dtype=self._dtype))

    def read(self, begin: int, end: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Write the changes of elements `begin` to `end` into `out`, and return it."""
        if self._frames is None:
            return dequantise(self._values(begin, end, out), self._scales, begin, out)
        place = begin
        while place < end:
            block = place // BLOCK
            upto = min(end, (block + 1) * BLOCK)
            values = self._unpack(block)[place - block * BLOCK : upto - block * BLOCK]
            dequantise(values, self._scales, place, out[place - begin : upto - begin])
            place = upto
        return out

    def survivors(self) -> Survivors:
        """Return which filters survived, and on how many images."""
        packed = self._tensor("survivors", np.dtype("u1")).reshape(self._tensors["survivors"].shape)
        return Survivors(packed, self._tensor("survivor_images", np.dtype("<i8")), self.plan.filters)

    def statistics(self) -> dict[str, NDArray[np.float32]]:
        """Return the batch-norm statistics, none when none were measured."""
        if "statistics" not in self._tensors:
            return {}
        vector, begin = self._tensor("statistics", np.dtype("<f4")), 0
        found: dict[str, NDArray[np.float32]] = {}
        for name, shape in self.plan.statistics.items():
            found[name] = vector[begin : begin + prod(shape)].reshape(shape)
            begin += prod(shape)
        return found

    def check(self) -> None:
        """Check all values, once; raise `ProtocolError`."""
        survivors = self.survivors()
        _check_counts(survivors.images, self.header)
        if not survivors.tidy:
            raise ProtocolError("form: the survivors tell of filters that the network does not have")
        statistics = self.statistics()
        for name, tensor in statistics.items():
            if not np.all(np.isfinite(tensor)):
                raise ProtocolError(f"finite: {name} holds NaN or infinity")
            if name.endswith(".running_var") and np.any(tensor < 0):
                raise ProtocolError(f"finite: {name} holds a negative variance")
        digest = hashlib.sha256()
        self._check_changes(survivors, digest)
        for tensor in statistics.values():
            digest.update(np.ascontiguousarray(tensor).data)
        digest.update(survivors.packed.data)
        digest.update(survivors.images.data)
        if digest.hexdigest() != self.stated.digest:
            raise ProtocolError("digest: the update does not hold what its digest was made of")

    def _check_changes(self, survivors: Survivors, digest: hashlib._Hash) -> None:
        buffer, doubled = np.empty(_AT_ONCE, dtype="<f4"), np.empty(_AT_ONCE)
        trained = survivors.whole and len(survivors.images) > 0
        for piece in pieces_of(self.plan, _AT_ONCE):
            size = piece.end - piece.begin
            if size > len(buffer):  # a kernel is never parted
                buffer, doubled = np.empty(size, dtype="<f4"), np.empty(size)
            changes = self.read(piece.begin, piece.end, buffer[:size])
            digest.update(changes.data)
            largest = max(float(changes.max()), -float(changes.min()))
            if not np.isfinite(largest):
                raise ProtocolError(f"finite: the change of {piece.name} holds NaN or infinity")
            self.largest = max(self.largest, largest)
            if not largest:
                continue
            squares = doubled[:size]
            np.copyto(squares, changes)
            self.squares += float(np.dot(squares, squares))
            if trained:
                continue
            untrained = piece.images(survivors) == 0
            if untrained.any() and np.any(changes.reshape(-1, piece.kernel)[untrained]):
                raise ProtocolError(f"untrained: elements of {piece.name} changed that no mini-batch trained")

    def _values(self, begin: int, end: int, out: NDArray[np.float32]) -> NDArray[np.generic]:
        place = self._begins["changes"] + begin * self._dtype.itemsize
        if self._dtype == out.dtype:  # read where they are wanted
            self._source.read(place, out.data.cast("B"))
            return out
        values = np.empty(end - begin, dtype=self._dtype)
        self._source.read(place, values.data.cast("B"))
        return values

    def _unpack(self, block: int) -> NDArray[np.generic]:
        assert self._frames is not None
        if self._unpacked[0] != block:
            begin, end = int(self._frames[block]), int(self._frames[block + 1])
            frame = bytearray(end - begin)
            self._source.read(self._begins["packed"] + begin, memoryview(frame))
            elements = min(BLOCK, self._elements - block * BLOCK)
            data = unpack_block(bytes(frame), elements * self._dtype.itemsize)
            self._unpacked = (block, np.frombuffer(data, dtype=self._dtype))
        return self._unpacked[1]

    def _frame_begins(self) -> NDArray[np.int64]:
        sizes = self._tensor("packed_bytes", np.dtype("<i4")).astype(np.int64)
        if np.any(sizes < 1) or int(sizes.sum()) != self._tensors["packed"].shape[0]:
            raise ProtocolError("form: the packed blocks do not make up what is packed")
        if np.any(sizes > most_packed_bytes(BLOCK, self._dtype.itemsize)):
            raise ProtocolError("size: a packed block is larger than what it holds")
        return np.concatenate([[0], np.cumsum(sizes)])

    def _tensor(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        array = np.empty(prod(self._tensors[name].shape), dtype=dtype)
        if array.size:
            self._source.read(self._begins[name], array.data.cast("B"))
        return array


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size_bytes = len(data)

    def read(self, place: int, into: memoryview) -> None:
        into[:] = self._data[place : place + len(into)]


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.size_bytes = path.stat().st_size
        except OSError as error:
            raise self._failure(error) from None

    def read(self, place: int, into: memoryview) -> None:
        # Not mapped into memory: a file that is cut while it is mapped ends the process.
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(place)
                done = 0
                while done < len(into):
                    count = file.readinto(into[done:])
                    if not count:
                        raise ProtocolError("form: the update is cut off")
                    done += count
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> StateError:
        return StateError(f"{self._path}: cannot be read: {error.strerror}; restore it from a backup")


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


def _read_header(source: _File | _Memory) -> tuple[StatedHeader, dict[str, _Tensor], int]:
    if source.size_bytes < 8:
        raise ProtocolError("form: the update's header is cut off or too long")
    prefix = bytearray(8)
    source.read(0, memoryview(prefix))
    length = int.from_bytes(prefix, "little")
    if not 0 < length <= min(MAXIMUM_HEADER_BYTES, source.size_bytes - 8):
        raise ProtocolError("form: the update's header is cut off or too long")
    text = bytearray(length)
    source.read(8, memoryview(text))
    try:
        document = json.loads(text, object_pairs_hook=_no_repeats)
        metadata = msgspec.convert(document, type=_Document).metadata
        header = msgspec.json.decode(metadata[HEADER_KEY], type=StatedHeader)
        del document["__metadata__"]
        stated = msgspec.convert(document, type=dict[str, _Tensor])
    except KeyError:
        raise ProtocolError(f"form: the metadata has no {HEADER_KEY!r}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"form: the update's header is not valid: {str(error)[:200]}") from None
    if header.format != 1:
        raise ProtocolError(f"form: update format {header.format} is not known")
    return header, stated, 8 + length


def _check_stated(stated: Mapping[str, _Tensor], header: StatedHeader, plan: Plan, elements: int) -> None:
    """Hold what the header says of the tensors against the plan, before any memory is taken for them."""
    dtype, values = DTYPES[header.encoding]
    survivors, packed = stated.get("survivors"), stated.get("packed")
    kinds = survivors.shape[0] if survivors is not None and survivors.shape else 0
    packed_bytes = packed.shape[0] if packed is not None and packed.shape else 0
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "survivors": ("U8", (kinds, ceil(plan.filters / 8))),
        "survivor_images": ("I64", (kinds,)),
    }
    if header.compression == "zstd":
        expected |= {"packed": ("U8", (packed_bytes,)), "packed_bytes": ("I32", (ceil(elements / BLOCK),))}
    else:
        expected["changes"] = (dtype, (elements,))
    if header.encoding == "int8":
        expected["scales"] = ("F32", (len(scale_lengths(p.shape for p in plan.parameters.values())),))
    if header.statistics_images:
        expected["statistics"] = ("F32", (sum(prod(shape) for shape in plan.statistics.values()),))
    strange = sorted(set(stated) ^ set(expected))
    if strange:
        raise ProtocolError(f"shape: the update's tensors are not the network's: {str(strange[:3])[:200]}")
    for name, (dtype, shape) in expected.items():
        if stated[name].dtype != dtype:
            raise ProtocolError(f"type: {name} must be {dtype}, got {stated[name].dtype[:20]}")
        if stated[name].shape != shape:
            raise ProtocolError(f"shape: {name} must be {shape}, got {str(stated[name].shape)[:80]}")
    if kinds > most_kinds(plan):
        raise ProtocolError(
            f"size: {count_of(kinds, 'kind')} of subsets, an update of this network has at most {most_kinds(plan)}"
        )
    if packed_bytes > most_packed_bytes(elements, values.itemsize):
        raise ProtocolError(f"size: {packed_bytes} packed bytes are more than what they hold")


def _check_places(stated: Mapping[str, _Tensor], data_begin: int, size_bytes: int) -> dict[str, int]:
    """Return where each tensor begins in the file, in which they must follow each other without gaps to the end."""
    begins: dict[str, int] = {}
    place = 0
    for name, tensor in sorted(stated.items(), key=lambda entry: entry[1].data_offsets):
        begin, end = tensor.data_offsets
        if begin != place or end - begin != prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]:
            raise ProtocolError(f"form: {name} does not lie where it must")
        begins[name] = data_begin + begin
        place = end
    if data_begin + place != size_bytes:
        raise ProtocolError("form: the update is cut off, or has bytes to spare")
    return begins


def _check_counts(kept_images: NDArray[np.int64], header: UpdateHeader) -> None:
    # Summed in whole numbers of Python: int64 might wrap around.
    if np.any(kept_images < 1) or sum(kept_images.tolist()) != header.images:
        raise ProtocolError("samples: the images of the survivors do not add up to the update's images")
    if not len(kept_images) <= header.mini_batches <= header.images:
        raise ProtocolError("samples: images, mini-batches and kinds of subsets contradict each other")
