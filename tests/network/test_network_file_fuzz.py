"""Files that were damaged at random, and files made to waste a reader's time or memory."""

from __future__ import annotations

import copy
import json
import random
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.errors import NetworkError
from distreal_edge.network import Network, PlanBuilder, Preprocessing
from distreal_edge.network.file import MAXIMUM_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Json = Any


@pytest.fixture(scope="module")
def data() -> bytes:
    builder = PlanBuilder((2, 6, 6))
    stem = builder.conv2d("stem", builder.input, 4, kernel=3, padding=1, bias=False)
    value = builder.relu(builder.batch_norm("bn", stem))
    value = builder.conv2d("depthwise", value, 4, kernel=3, padding=1, groups=4)
    value = builder.add(builder.conv2d("project", value, 4, kernel=1), stem)
    value = builder.concat(builder.max_pool(value, kernel=2), builder.avg_pool(value, kernel=2))
    excite = builder.sigmoid(builder.conv2d("excite", builder.global_avg_pool(value), 8, kernel=1))
    value = builder.dropout(builder.flatten(builder.multiply(value, excite)), 0.1)
    preprocessing = Preprocessing(mean=(0.5, 0.5), std=(0.25, 0.25), crop_padding=1)
    return Network.initialise(
        builder.finish(builder.linear("fc", value, 3), preprocessing=preprocessing), seed=0
    ).to_bytes()


def _read(data: bytes) -> bool:
    """Return whether the file is a network; whatever it is, it is nothing worse than refused."""
    try:
        network = Network.from_bytes(data)
    except NetworkError as error:
        refusal = str(error)
    else:
        # What is taken is sound: it can be written, and read again as the same.
        assert Network.from_bytes(network.to_bytes()).plan == network.plan
        return True
    assert len(refusal) < 1000
    assert refusal.isprintable()
    return False


def _damaged(data: bytes, seed: int) -> bytes:
    choose = random.Random(seed)
    made = bytearray(data)
    (length,) = struct.unpack("<Q", data[:8])
    for _ in range(choose.choice([1, 1, 2, 8])):
        # Mostly in the header: what a float is turned into is of little interest.
        place = choose.randrange(len(made) if choose.random() < 0.2 else min(len(made), 8 + length))
        match choose.randrange(5):
            case 0:
                made[place] ^= 1 << choose.randrange(8)
            case 1:
                made[place] = choose.choice(b'\x00\xff"{}[]:,0123456789-eE.\\ tn')
            case 2:
                del made[place : place + choose.choice([1, 2, 30, 10_000])]
            case 3:
                made[place:place] = choose.randbytes(choose.choice([1, 2, 30]))
            case _:
                made[place:place] = made[place : place + choose.choice([1, 10, 100])]
        if not made:
            break
    if choose.random() < 0.5 and len(made) > 8:  # often with a length that fits, so that more than it is looked at
        made[:8] = struct.pack("<Q", max(0, length + len(made) - len(data)))
    return bytes(made)


def test_damage_anywhere_is_refused_or_harmless(data: bytes) -> None:
    read = sum(_read(_damaged(data, seed)) for seed in range(4000))
    assert read < 1000  # some bits of a weight may flip and leave a number


ODD_VALUES: tuple[Json, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 256, 65536, 2**31, 2**53, 2**63, 2**64, 10**100, 0.5, -0.0, 1e-320, 1e308),
    *("", "input", "stem", "conv2d", "add", "F32", "\n", "é", "\ud800", "\x00", "a" * 5000),
    *([], [[]], {}, {"kind": "relu"}, [1, 1], [3, 3], [0, 0], [256, 256], ["stem"], ["input"], ["stem", "stem"]),
)


def _places(document: Json) -> Iterator[tuple[Json, Any]]:
    """Yield every (container, key) of a document."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])


def _mutate(document: Json, choose: random.Random) -> None:
    places = list(_places(document))
    container, key = choose.choice(places)
    other, other_key = choose.choice(places)
    match choose.randrange(6):
        case 0:
            del container[key]
        case 1:
            container[key] = copy.deepcopy(other[other_key])
        case 2 if isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        case 3 if isinstance(container, list):
            choose.shuffle(container)
        case 4 if isinstance(container, dict):
            container[choose.choice(["kind", "name", "inputs", "stride", "strange"])] = choose.choice(ODD_VALUES)
        case _:
            container[key] = copy.deepcopy(choose.choice(ODD_VALUES))


def _mutated(data: bytes, seed: int) -> bytes:
    choose = random.Random(seed)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["distreal_edge"])
    for _ in range(choose.choice([1, 1, 2, 5])):
        _mutate(document, choose)
    header["__metadata__"]["distreal_edge"] = json.dumps(document)
    if choose.random() < 0.3:
        _mutate(header, choose)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]


def test_a_plan_or_header_of_another_structure_is_refused_or_harmless(data: bytes) -> None:
    read = sum(_read(_mutated(data, seed)) for seed in range(4000))
    assert 0 < read < 1500  # a harmless change: another dropout probability, a default left out


def _file(operations: list[Json], **settings: Json) -> bytes:
    """Return a file with this plan and without groups or weights: enough to make a reader work."""
    document = {
        "format": 1,
        "input_shape": [1, 8, 8],
        "operations": operations,
        "groups": [],
        "rescale": False,
        "preprocessing": {},
        **settings,
    }
    header = json.dumps({"__metadata__": {"distreal_edge": json.dumps(document, separators=(",", ":"))}}).encode()
    assert len(header) <= MAXIMUM_HEADER_BYTES, "too long a header would be refused for that alone"
    return struct.pack("<Q", len(header)) + header


def _conv(name: str, channels: int, value: str = "input", groups: int = 1) -> Json:
    shape = {"out_channels": channels, "kernel": [1, 1], "groups": groups}
    return {"kind": "conv2d", "name": name, "inputs": [value], **shape}


def _two(kind: str, name: str, *values: str) -> Json:
    return {"kind": kind, "name": name, "inputs": list(values)}


def _head(value: str) -> list[Json]:
    return [
        _two("global_avg_pool", "g", value),
        _two("flatten", "f", "g"),
        {"kind": "linear", "name": "l", "inputs": ["f"], "out_features": 1},
    ]


def _doubling() -> bytes:
    operations = [_conv("v0", 1)]
    operations += [_two("concat", f"v{n}", f"v{n - 1}", f"v{n - 1}") for n in range(1, 4000)]
    return _file([*operations, *_head("v3999")])


def _widening() -> bytes:
    operations = [_conv("v0", 65536)]
    operations += [_two("concat", f"v{n}", *["v0"] * 20) for n in range(1, 4000)]
    return _file([*operations, *_head("v1")])


def _much_to_join() -> bytes:
    operations = [_conv("v0", 1)]
    operations += [_two("concat", f"v{n}", *["v0"] * 20) for n in range(1, 4000)]
    return _file([*operations, *_head("v1")])


def _additions() -> bytes:
    operations = [_conv("v0", 250)]
    operations += [_two("add", f"v{n}", f"v{n - 1}", "v0") for n in range(1, 4000)]
    return _file([*operations, *_head("v3999")])


def _stream_of_convolutions() -> bytes:
    operations = [_conv("v0", 250)]
    for n in range(1, 2000):
        operations += [_conv(f"c{n}", 250), _two("add", f"v{n}", f"v{n - 1}", f"c{n}")]
    return _file([*operations, *_head("v1999")])


def _split_into_single_filters() -> bytes:
    operations = [_conv(f"c{n}", 1) for n in range(3900)]
    parts = [_two("concat", f"p{n}", *[f"c{m}" for m in range(n * 250, min(n * 250 + 250, 3900))]) for n in range(16)]
    whole = _two("concat", "whole", *[f"p{n}" for n in range(16)])
    return _file([*operations, *parts, whole, _conv("w", 3900), _two("add", "v", "whole", "w"), *_head("v")])


def _diagonals() -> bytes:
    # Channel i of each value is tied to channel i + 1 of the next: components as long as the plan.
    operations = [_conv("v0", 200), _conv("one", 1)]
    for n in range(1, 600):
        operations += [_conv(f"s{n}", 199), _conv(f"v{n}", 200)]
        operations += [_two("concat", f"a{n}", f"s{n}", "one"), _two("concat", f"b{n}", "one", f"s{n}")]
        operations += [_two("add", f"x{n}", f"v{n - 1}", f"a{n}"), _two("add", f"y{n}", f"v{n}", f"b{n}")]
    return _file([*operations, *_head("y599")])


def _large_maps() -> bytes:
    flatten = _two("flatten", "f", "c")
    linear = {"kind": "linear", "name": "l", "inputs": ["f"], "out_features": 65536}
    return _file([_conv("c", 16), flatten, linear], input_shape=[1, 4096, 4096])


def _heavy_linear() -> bytes:
    linear = {"kind": "linear", "name": "l", "inputs": ["f"], "out_features": 255}
    return _file([_two("flatten", "f", "input"), linear], input_shape=[1, 1024, 1000])


def _deep_json() -> bytes:
    return struct.pack("<Q", MAXIMUM_HEADER_BYTES) + b"[" * MAXIMUM_HEADER_BYTES


def _many_objects() -> bytes:
    header = (b'{"a":[' + b"{}," * (MAXIMUM_HEADER_BYTES // 3)).ljust(MAXIMUM_HEADER_BYTES)[:MAXIMUM_HEADER_BYTES]
    return struct.pack("<Q", MAXIMUM_HEADER_BYTES) + header


def _many_tensors() -> bytes:
    tensors = {f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}
    operations = [_conv("c", 1), *_head("c")]
    metadata = json.loads(_file(operations)[8:])
    header = json.dumps({**metadata, **tensors}).encode()
    assert len(header) <= MAXIMUM_HEADER_BYTES
    return struct.pack("<Q", len(header)) + header


HOSTILE: tuple[tuple[Callable[[], bytes], str], ...] = (
    (_doubling, "over 1048576 channels with those before it"),
    (_widening, "over 1048576 channels with those before it"),
    (_much_to_join, "0 groups stated, 1 follow"),
    (_additions, "0 groups stated, 1 follow"),
    (_stream_of_convolutions, "0 groups stated, 1 follow"),
    (_split_into_single_filters, "0 groups stated, 3900 follow"),
    (_diagonals, "groups stated"),
    (_large_maps, "over 1048576 channels with those before it"),
    (_heavy_linear, "tensor 'l.weight' is missing"),
    (_deep_json, "the header is not JSON"),
    (_many_objects, "the header is not JSON"),
    (_many_tensors, "0 groups stated, 1 follow"),
)


@pytest.mark.parametrize(("make", "complaint"), HOSTILE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_hostile_file_is_refused_soon_and_without_much_memory(make: Callable[[], bytes], complaint: str) -> None:
    data = make()
    started = time.process_time()
    with pytest.raises(NetworkError) as caught:
        Network.from_bytes(data)
    assert time.process_time() - started < 2.0
    assert complaint in str(caught.value)
    tracemalloc.start()
    try:
        with pytest.raises(NetworkError):
            Network.from_bytes(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 200e6
