"""Updates in fewer bytes: what comes back, what it may cost to read, and that the digest is over what is meant."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distreal_edge.device import Update, UpdateHeader, decode_update, encode_update, read_update
from distreal_edge.device.encoding import BLOCK, Scales, dequantise, quantise
from distreal_edge.device.pieces import elements_of
from distreal_edge.errors import ProtocolError
from distreal_edge.network import PlanBuilder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from distreal_edge.network import Plan

KEY = "distreal_edge_update"
ENCODINGS = ("float32", "float16", "int8")
COMPRESSIONS = ("none", "zstd")
floats = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-(2.0**127), 2.0**127, width=32)
)  # fmt: skip


@pytest.fixture(scope="module")
def wide() -> Plan:
    """Return a plan of several blocks, which do not end where tensors do."""
    b = PlanBuilder((3, 8, 8))
    x = b.relu(b.batch_norm("bn1", b.conv2d("conv1", b.input, 48, kernel=3, padding=1, bias=False)))
    x = b.relu(b.conv2d("conv2", x, 60, kernel=3, stride=2, padding=1))
    x = b.relu(b.conv2d("grouped", x, 60, kernel=3, padding=1, groups=4))
    x = b.relu(b.conv2d("conv3", x, 64, kernel=3, padding=1))
    return b.finish(b.linear("head", b.flatten(b.global_avg_pool(x)), 5))


def an_update(plan: Plan, seed: int = 0, share: float = 0.7) -> Update:
    rng = np.random.default_rng(seed)
    kept = rng.random((3, plan.filters + 1)) < share
    kept[:, -1] = True
    changes = {
        name: (
            rng.standard_normal(parameter.shape).astype(np.float32)
            * np.float32(10.0 ** rng.integers(-6, 3))
            * np.any([parameter.touched(mask) for mask in kept], axis=0)
        )
        for name, parameter in plan.parameters.items()
    }
    statistics = {name: rng.random(shape).astype(np.float32) for name, shape in plan.statistics.items()}
    header = UpdateHeader(
        uid="u1", device="pi", round=2, model="a" * 64, images=24, mini_batches=4, loss=0.5, statistics_images=8
    )
    return Update(header, changes, statistics, kept, np.array([8, 8, 8]))


def in_a_row(changes: Any) -> NDArray[np.float32]:
    return np.concatenate([change.reshape(-1) for change in changes.values()])


def as_specified(data: bytes, plan: Plan) -> tuple[NDArray[np.float32], str]:
    """Read an update's changes and work out its digest from docs/protocol.md alone, with other means."""
    tensors = safetensors.numpy.load(data)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
    dtype = {"float32": "<f4", "float16": "<f2", "int8": "i1"}[header["encoding"]]
    if header["compression"] == "zstd":
        unpacked, place = b"", 0
        for size in tensors["packed_bytes"]:
            frame = io.BytesIO(tensors["packed"][place : place + size].tobytes())
            unpacked += zstandard.ZstdDecompressor().stream_reader(frame).read()
            place += size
        assert place == len(tensors["packed"])
        values = np.frombuffer(unpacked, dtype)
    else:
        values = tensors["changes"]
    decoded, place, row = [], 0, 0
    for parameter in plan.parameters.values():
        size = int(np.prod(parameter.shape))
        change = values[place : place + size].astype(np.float32).reshape(parameter.shape)
        if header["encoding"] == "int8":
            rows = parameter.shape[0] if len(parameter.shape) > 1 else 1
            scales = tensors["scales"][row : row + rows]
            change = (change.reshape(rows, -1) * scales[:, None]).reshape(parameter.shape)
            row += rows
        decoded.append(change.astype("<f4").reshape(-1))
        place += size
    vector = np.concatenate(decoded)
    digest = hashlib.sha256(vector.tobytes())
    for name in ("statistics", "survivors", "survivor_images"):
        if name in tensors:
            digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    assert digest.hexdigest() == header["digest"]
    return vector, header["digest"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_comes_back_is_what_the_protocol_says(wide: Plan, encoding: Any, compression: Any) -> None:
    sent = an_update(wide)
    data = encode_update(sent, encoding, compression)
    got = decode_update(data, wide)
    expected, _ = as_specified(data, wide)
    assert in_a_row(got.changes).tobytes() == expected.tobytes()
    assert got.header == sent.header
    assert np.array_equal(got.kept, sent.kept)
    assert all(np.array_equal(got.statistics[name], sent.statistics[name]) for name in wide.statistics)
    exact = in_a_row(sent.changes)
    assert np.all(expected[exact == 0] == 0)
    if encoding == "float32":
        assert np.array_equal(expected, exact)


def test_what_is_lost_is_half_a_step_at_most(wide: Plan) -> None:
    sent = an_update(wide)
    for name, got in decode_update(encode_update(sent, "int8"), wide).changes.items():
        rows = sent.changes[name].reshape(len(got) if got.ndim > 1 else 1, -1)
        step = np.abs(rows).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(rows - got.reshape(rows.shape)) <= 0.5001 * step)
    for name, got in decode_update(encode_update(sent, "float16"), wide).changes.items():
        assert np.all(np.abs(sent.changes[name] - got) <= np.maximum(2.0**-11 * np.abs(sent.changes[name]), 3e-8))


@settings(deadline=None, max_examples=300)
@given(vector=floats, encoding=st.sampled_from(["float16", "int8"]), parts=st.integers(1, 5))
def test_any_finite_vector_stays_finite_and_keeps_its_zeros(
    vector: NDArray[np.float32], encoding: Any, parts: int
) -> None:
    lengths = np.array([len(part) for part in np.array_split(vector, min(parts, len(vector)))])
    values, scales = quantise(vector, encoding, lengths)
    out = np.empty_like(vector)
    with np.errstate(all="raise", under="ignore"):
        dequantise(values, Scales(scales, lengths) if encoding == "int8" else None, 0, out)
    assert np.isfinite(out).all()
    assert np.all(out[vector == 0] == 0)
    assert np.all(np.sign(out) * np.sign(vector) >= 0)
    assert np.all(np.abs(out) <= np.abs(vector).max() * 1.001 + 3e-8)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_part_can_be_read_from_a_file(wide: Plan, encoding: Any, compression: Any, tmp_path: Path) -> None:
    path = tmp_path / "u.update"
    path.write_bytes(encode_update(an_update(wide), encoding, compression))
    expected, _ = as_specified(path.read_bytes(), wide)
    reader = read_update(path, wide)
    assert reader.largest == np.abs(expected).max()
    assert reader.squares == pytest.approx(np.square(expected.astype(np.float64)).sum(), rel=1e-12)
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(0, len(expected) + 1, size=(30, 2)), axis=1)
    for begin, end in [(0, len(expected)), (BLOCK - 1, BLOCK + 1), *ends.tolist()]:
        out = np.full(end - begin, np.nan, np.float32)
        assert np.array_equal(reader.read(begin, end, out), expected[begin:end])


def test_the_digest_is_the_same_however_it_is_written_down(wide: Plan) -> None:
    rounded = decode_update(encode_update(an_update(wide), "float16"), wide)
    digests = {
        as_specified(encode_update(rounded, encoding, compression), wide)[1]
        for encoding in ("float32", "float16")
        for compression in COMPRESSIONS
    }
    assert len(digests) == 1
    assert as_specified(encode_update(rounded, "int8"), wide)[1] not in digests


def rewritten(data: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    tensors = dict(safetensors.numpy.load(data))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
    change(tensors, header)
    written: bytes = safetensors.numpy.save(tensors, metadata={KEY: json.dumps(header)})
    return written


def with_frame(place: int, frame: bytes) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Put another frame in the place of one of the packed blocks."""

    def change(tensors: dict[str, Any], _: dict[str, Any]) -> None:
        sizes = tensors["packed_bytes"].copy()
        begin = int(sizes[:place].sum())
        packed = tensors["packed"].tobytes()
        packed = packed[:begin] + frame + packed[begin + int(sizes[place]) :]
        sizes[place] = len(frame)
        tensors.update(packed=np.frombuffer(packed, np.uint8), packed_bytes=sizes)

    return change


def squeezed(data: bytes, *, stated: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=stated).compress(data)


def lying(data: bytes, about: int) -> bytes:
    """Return a frame of `data` whose header says another size, in four bytes."""
    frame = bytearray(squeezed(data))
    assert frame[4] >> 6 == 2, "four bytes of content size"
    place = 5 if frame[4] & 0x20 else 6  # a frame of a single segment names no window
    frame[place : place + 4] = about.to_bytes(4, "little")
    return bytes(frame)


BLOCK_BYTES = 4 * BLOCK
BAD_FRAMES = {
    "a bomb that says how large it is": ("size", squeezed(bytes(2**28))),
    "a bomb that does not say it": ("size", squeezed(bytes(2**28), stated=False)),
    "a bomb that says it is a block": ("form", lying(bytes(2**28), BLOCK_BYTES)),
    "a bomb behind a block": ("form", squeezed(bytes(BLOCK_BYTES)) + squeezed(bytes(2**28))),
    "a frame that promises more than it holds": ("form", lying(bytes(BLOCK_BYTES - 1), BLOCK_BYTES)),
    "a block that is too small": ("size", squeezed(bytes(BLOCK_BYTES - 4))),
    "no frame": ("form", b"not zstd at all"),
    "a frame cut off": ("form", squeezed(np.random.default_rng(0).bytes(BLOCK_BYTES))[:-5]),
    "a frame that was changed": ("digest", squeezed(bytes(BLOCK_BYTES))),
}


@pytest.mark.parametrize("way", BAD_FRAMES)
def test_a_packed_block_that_lies_is_refused_in_little_memory(wide: Plan, way: str) -> None:
    reason, frame = BAD_FRAMES[way]
    data = rewritten(encode_update(an_update(wide, share=1.1), "float32", "zstd"), with_frame(0, frame))
    tracemalloc.start()
    with pytest.raises(ProtocolError) as caught:
        read_update(data, wide)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(caught.value).partition(":")[0] == reason
    assert peak_bytes < 4 * 2**20


def say(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _, header: header.update(fields)


def spoil(**arrays: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, _: tensors.update(arrays)


def _with_scale(value: float) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(tensors: dict[str, Any], _: dict[str, Any]) -> None:
        tensors["scales"] = tensors["scales"].copy()
        tensors["scales"][3] = value

    return change


def _with_sizes(change: Callable[[NDArray[np.int32]], None]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def apply(tensors: dict[str, Any], _: dict[str, Any]) -> None:
        tensors["packed_bytes"] = tensors["packed_bytes"].copy()
        change(tensors["packed_bytes"])

    return apply


def _shift(sizes: NDArray[np.int32]) -> None:
    sizes[0] += 1
    sizes[1] -= 1


def _negative(sizes: NDArray[np.int32]) -> None:
    sizes[1] += sizes[0] + 5
    sizes[0] = -5


def _all_in_one(sizes: NDArray[np.int32]) -> None:
    sizes[0] = sizes.sum() - len(sizes) + 1
    sizes[1:] = 1


@pytest.mark.parametrize(
    ("encoding", "compression", "reason", "change"),
    [
        ("int8", "none", "finite", _with_scale(np.nan)),
        ("int8", "none", "finite", _with_scale(-1.0)),
        ("int8", "none", "finite", _with_scale(3e38)),
        ("int8", "none", "shape", lambda tensors, _: tensors.pop("scales")),
        ("int8", "none", "shape", spoil(scales=np.ones(3, np.float32))),
        ("int8", "none", "type", spoil(scales=np.ones(3, np.float64))),
        ("int8", "none", "shape", say(encoding="float16")),
        ("float16", "none", "type", say(encoding="float32")),
        ("float16", "none", "shape", say(compression="zstd")),
        ("float16", "zstd", "shape", say(compression="none")),
        ("float16", "zstd", "form", say(compression="gzip")),
        ("float16", "zstd", "size", say(encoding="float32")),
        ("float32", "zstd", "form", spoil(packed=np.zeros(3, np.uint8))),
        ("float32", "zstd", "size", spoil(packed=np.zeros(2**20, np.uint8))),
        ("float32", "zstd", "shape", spoil(packed_bytes=np.ones(1, np.int32))),
        ("float32", "zstd", "form", _with_sizes(_shift)),
        ("float32", "zstd", "form", _with_sizes(_negative)),
        ("float32", "zstd", "size", _with_sizes(_all_in_one)),
    ],
)  # fmt: skip
def test_each_way_to_be_wrong_is_refused_with_its_reason(
    wide: Plan, encoding: Any, compression: Any, reason: str, change: Any
) -> None:
    data = encode_update(an_update(wide, share=1.1), encoding, compression)
    with pytest.raises(ProtocolError) as caught, np.errstate(over="ignore"):
        read_update(rewritten(data, change), wide)
    assert str(caught.value).partition(":")[0] == reason


def test_a_file_is_checked_in_memory_that_does_not_grow_with_the_network(tmp_path: Path) -> None:
    b = PlanBuilder((3, 4, 4))
    plan = b.finish(b.linear("head", b.flatten(b.conv2d("conv", b.input, 4096, kernel=1)), 64))
    header = UpdateHeader(uid="u", device="d", round=1, model="a" * 64, images=8, mini_batches=1)
    changes = {name: np.ones(parameter.shape, np.float32) for name, parameter in plan.parameters.items()}
    update = Update(header, changes, {}, np.ones((1, plan.filters + 1), np.bool_), np.array([8]))
    assert 4 * elements_of(plan) > 16 * 2**20
    for encoding in ENCODINGS:
        for compression in COMPRESSIONS:
            path = tmp_path / f"{encoding}-{compression}"
            path.write_bytes(encode_update(update, encoding, compression))  # type: ignore[arg-type]
            tracemalloc.start()
            read_update(path, plan)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak_bytes < 4 * 2**20, (encoding, compression)
