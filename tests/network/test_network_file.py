from __future__ import annotations

import json
import struct
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from distreal_edge.errors import NetworkError
from distreal_edge.network import Network, PlanBuilder, Preprocessing
from distreal_edge.network.file import MAXIMUM_FILE_BYTES, MAXIMUM_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.network import Plan

Json = Any


def _network() -> Network:
    builder = PlanBuilder((2, 6, 6))
    value = builder.conv2d("conv1", builder.input, 4, kernel=3, bias=False)
    value = builder.relu(builder.batch_norm("bn1", value))
    value = builder.dropout(builder.conv2d("conv2", value, 3, kernel=3), 0.25)
    preprocessing = Preprocessing(mean=(0.1, 0.2), std=(0.3, 0.7), crop_padding=2, horizontal_flip=True)
    plan = builder.finish(builder.linear("fc", builder.flatten(value), 5), preprocessing=preprocessing)
    return Network.initialise(plan, seed=4)


@pytest.fixture(scope="module")
def data() -> bytes:
    return _network().to_bytes()


def _unpack(data: bytes) -> tuple[dict[str, Json], dict[str, Json], bytes]:
    """Return the header, the plan's document and the weights."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["distreal_edge"]), data[8 + length :]


def _pack(header: Json, document: Json | None, weights: bytes) -> bytes:
    if document is not None:
        text = document if isinstance(document, str) else json.dumps(document)
        header = {**header, "__metadata__": {"distreal_edge": text}}
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + weights


def _refused(data: bytes) -> str:
    with pytest.raises(NetworkError) as caught:
        Network.from_bytes(data, "some.safetensors")
    message = str(caught.value)
    assert message.startswith("some.safetensors: ")
    assert len(message) < 1000
    assert message.isprintable()
    return message


def test_a_network_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    network = _network()
    path = tmp_path / "network.safetensors"
    network.save(path)
    back = Network.load(path)
    assert back.plan == network.plan
    assert back.digest == network.digest
    assert list(back.weights) == list(network.weights) == list(network.plan.tensors)
    for name, weights in network.weights.items():
        assert back.weights[name].dtype == np.float32
        assert back.weights[name].tobytes() == weights.tobytes()
        assert back.weights[name].flags.writeable


def test_any_network_comes_back_from_its_bytes(random_plan: Callable[[int], Plan]) -> None:
    for seed in range(30):
        network = Network.initialise(random_plan(seed), seed)
        data = network.to_bytes()
        back = Network.from_bytes(data)
        assert back.plan == network.plan
        assert back.groups == network.groups
        assert back.to_bytes() == data == network.to_bytes()


def test_weights_that_are_not_contiguous_are_written_as_they_look() -> None:
    network = _network()
    turned = dict(network.weights)
    turned["fc.weight"] = np.asfortranarray(turned["fc.weight"])
    assert Network(network.plan, turned).to_bytes() == network.to_bytes()


def test_any_safetensors_reader_reads_the_weights(data: bytes, tmp_path: Path) -> None:
    network = _network()
    weights = safetensors.numpy.load(data)
    assert {name: array.tobytes() for name, array in weights.items()} == {
        name: array.tobytes() for name, array in network.weights.items()
    }
    (tmp_path / "network.safetensors").write_bytes(data)
    with safetensors.safe_open(tmp_path / "network.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    document = json.loads(metadata["distreal_edge"])
    assert document["format"] == 1
    assert document["groups"] == [{"name": "conv1", "filters": 4}, {"name": "conv2", "filters": 3}]
    assert [operation["kind"] for operation in document["operations"]] == [
        *("conv2d", "batch_norm", "relu", "conv2d", "dropout", "flatten", "linear")
    ]


def test_a_reader_takes_a_plan_whose_defaults_are_left_out(data: bytes) -> None:
    header, document, weights = _unpack(data)
    for operation in document["operations"]:
        if operation["kind"] == "conv2d":
            for field in ("stride", "padding", "dilation", "groups"):
                del operation[field]
    assert Network.from_bytes(_pack(header, document, weights)).plan == _network().plan


def test_other_metadata_is_let_be(data: bytes) -> None:
    header, document, weights = _unpack(data)
    header["__metadata__"] = {"format": "pt", "distreal_edge": json.dumps(document)}
    assert Network.from_bytes(_pack(header, None, weights)).plan == _network().plan


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_file_too_short_for_its_length_is_refused(data: bytes, length: int) -> None:
    assert f"{length} bytes are too few for a safetensors file" in _refused(data[:length])


def test_a_file_cut_off_anywhere_is_refused(data: bytes) -> None:
    (length,) = struct.unpack("<Q", data[:8])
    for end in range(8, len(data)):
        wanted = "the file ends inside its header" if end < 8 + length else "it is cut off or damaged"
        assert wanted in _refused(data[:end])


def test_bytes_after_the_weights_are_refused(data: bytes) -> None:
    assert f"the file has {len(data) + 4} bytes, its header describes {len(data)}" in _refused(data + bytes(4))


@pytest.mark.parametrize(
    ("length", "complaint"),
    [
        (0, "the header is not JSON"),
        (1, "the header is not JSON"),
        (MAXIMUM_HEADER_BYTES, "the file ends inside its header"),
        (MAXIMUM_HEADER_BYTES + 1, "over the limit"),
        (2**64 - 1, "over the limit"),
    ],
)
def test_a_header_length_that_lies_is_refused(data: bytes, length: int, complaint: str) -> None:
    assert complaint in _refused(struct.pack("<Q", length) + data[8:])


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"PK\x03\x04", "the header is not JSON"),
        (b'{"a": 1', "the header is not JSON"),
        (b"\xff\xfe{\x00}\x00", "the header is not JSON: 'utf-8' codec"),
        (b'{"a": "\xff"}', "the header is not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "the header is not JSON"),
        (b'{"a":' * 100_000, "the header is not JSON"),
        (b"1" * 10_000, "the header is not JSON"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is no number of JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b'{"x": {"dtype": "F32", "dtype": "F16"}}', "the key 'dtype' stands twice"),
        (b'{"\\u001b[2J": 1, "\\u001b[2J": 1}', "the key '?[2J' stands twice"),
        (b"[]", "the header is not a JSON object"),
        (b"null", "the header is not a JSON object"),
        (b"{}", "the metadata has no 'distreal_edge'"),
        (b'{"__metadata__": []}', "the metadata has no 'distreal_edge'"),
        (b'{"__metadata__": {"distreal_edge": 1}}', "the metadata has no 'distreal_edge'"),
        (b'{"__metadata__": {"format": "pt"}}', "safetensors, but not a network of distreal-edge"),
        (b'{"__metadata__": {"distreal_edge": "\\ud800"}}', "the plan is not valid: 'utf-8' codec"),
    ],
)
def test_a_header_that_is_none_is_refused(header: bytes, complaint: str) -> None:
    assert complaint in _refused(_pack(header, None, b""))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the plan is not JSON"),
        ("[" * 100_000, "the plan is not JSON"),
        ("[]", "the plan is not valid: Expected `object`, got `array`"),
        ("{}", "missing required field `format`"),
        ('{"format": 1, "format": 1}', "the plan is not JSON: the key 'format' stands twice"),
        ('{"format": Infinity}', "the plan is not JSON: Infinity is no number of JSON"),
        ('{"format": "1"}', "Expected `int`, got `str`"),
        ('{"format": 0}', "format version 0 is not known; this program reads version 1"),
        ('{"format": 2, "anything": "else"}', "format version 2 is not known"),
        ('{"format": 1}', "missing required field `input_shape`"),
    ],
)
def test_a_plan_that_is_none_is_refused(data: bytes, text: str, complaint: str) -> None:
    header, _, weights = _unpack(data)
    assert complaint in _refused(_pack(header, text, weights))


def _operation(document: Json, name: str) -> Json:
    return next(operation for operation in document["operations"] if operation["name"] == name)


WRONG_PLANS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "unknown field": (lambda d: d.update(author="me"), "unknown field `author`"),
    "unknown operation": (lambda d: _operation(d, "relu#0").update(kind="gelu"), "Invalid value 'gelu'"),
    "no kind": (lambda d: _operation(d, "relu#0").pop("kind"), "missing required field `kind`"),
    "unknown field of an operation": (
        lambda d: _operation(d, "conv1").update(padding_mode="circular"),
        "unknown field `padding_mode` - at `$.operations[0]`",
    ),
    "long unknown field": (lambda d: d.update({"\x1b[31m" * 10_000: 1}), "unknown field `?[31m"),
    "no kernel": (lambda d: _operation(d, "conv1").pop("kernel"), "missing required field `kernel`"),
    "kernel of three": (lambda d: _operation(d, "conv1").update(kernel=[3, 3, 3]), "length 2"),
    "kernel too large": (lambda d: _operation(d, "conv1").update(kernel=[3, 257]), "Expected `int` <= 256"),
    "kernel of text": (lambda d: _operation(d, "conv1").update(kernel="33"), "Expected `array`, got `str`"),
    "stride of zero": (lambda d: _operation(d, "conv1").update(stride=[0, 1]), "Expected `int` >= 1"),
    "negative padding": (lambda d: _operation(d, "conv1").update(padding=[-1, 0]), "Expected `int` >= 0"),
    "no channels": (lambda d: _operation(d, "conv1").update(out_channels=0), "Expected `int` >= 1"),
    "too many channels": (lambda d: _operation(d, "conv1").update(out_channels=65537), "Expected `int` <= 65536"),
    "channels beyond any integer": (lambda d: _operation(d, "conv1").update(out_channels=10**400), "Expected `int`"),
    "a truth for a number": (lambda d: _operation(d, "conv1").update(groups=True), "Expected `int`, got `bool`"),
    "a number for a truth": (lambda d: _operation(d, "conv1").update(bias=1), "Expected `bool`, got `int`"),
    "groups that divide nothing": (lambda d: _operation(d, "conv1").update(groups=3), "has 3 groups, which do not"),
    "dropout of everything": (lambda d: _operation(d, "dropout#0").update(p=1.0), "Expected `float` < 1.0"),
    "epsilon of zero": (lambda d: _operation(d, "bn1").update(epsilon=0), "Expected `float` > 0.0"),
    "no name": (lambda d: _operation(d, "conv1").update(name=""), "Expected `str` of length >= 1"),
    "long name": (lambda d: _operation(d, "conv1").update(name="c" * 129), "Expected `str` of length <= 128"),
    "name with a space": (lambda d: _operation(d, "conv1").update(name="conv 1"), "matching regex"),
    "name with a line feed": (lambda d: _operation(d, "conv1").update(name="conv1\n"), "matching regex"),
    "duplicate name": (lambda d: _operation(d, "conv2").update(name="conv1"), "two values are named 'conv1'"),
    "named as the input": (lambda d: _operation(d, "conv1").update(name="input"), "two values are named 'input'"),
    "reads itself": (
        lambda d: _operation(d, "relu#0").update(inputs=["relu#0"]),
        "'relu#0' reads 'relu#0', which no earlier operation makes",
    ),
    "reads what comes later": (lambda d: _operation(d, "bn1").update(inputs=["conv2"]), "which no earlier"),
    "reads nothing": (lambda d: _operation(d, "bn1").update(inputs=[]), "length >= 1"),
    "reads too much": (lambda d: _operation(d, "bn1").update(inputs=["conv1"] * 257), "length <= 256"),
    "reads two": (lambda d: _operation(d, "bn1").update(inputs=["conv1"] * 2), "takes 1 inputs, got 2"),
    "no operations": (lambda d: d.update(operations=[]), "length >= 1"),
    "too many operations": (lambda d: d.update(operations=d["operations"][:1] * 4097), "length <= 4096"),
    "ends in maps": (lambda d: d.update(operations=d["operations"][:3]), "it must make class scores"),
    "input of two sides": (lambda d: d.update(input_shape=[6, 6]), "length 3"),
    "input of no size": (lambda d: d.update(input_shape=[2, 0, 6]), "each 1..4096"),
    "input too small": (lambda d: d.update(input_shape=[2, 2, 6]), "has a window of 3 on a side of 2"),
    "input too large": (lambda d: d.update(input_shape=[4096] * 3), "more than 268435456 elements"),
    "no groups": (lambda d: d.update(groups=[]), "0 groups stated, 2 follow"),
    "a group more": (lambda d: d["groups"].append({"name": "x", "filters": 1}), "3 groups stated, 2 follow"),
    "a group of another size": (
        lambda d: d["groups"][1].update(filters=4),
        "the stated filter groups are not those that follow from the operations: ('conv2', 4) is ('conv2', 3)",
    ),
    "a group of another name": (lambda d: d["groups"][0].update(name="bn1"), "('bn1', 4) is ('conv1', 4)"),
    "groups exchanged": (lambda d: d["groups"].reverse(), "('conv2', 3) is ('conv1', 4)"),
    "too many groups": (lambda d: d.update(groups=d["groups"] * 2049), "length <= 4096"),
    "rescale of text": (lambda d: d.update(rescale="yes"), "Expected `bool`, got `str`"),
    "no preprocessing": (lambda d: d.pop("preprocessing"), "missing required field `preprocessing`"),
    "mean of one channel": (lambda d: d["preprocessing"].update(mean=[0.5]), "1 numbers for 2 input channels"),
    "std of zero": (lambda d: d["preprocessing"].update(std=[0.0, 1.0]), "Expected `float` >= 1e-06"),
    "mean beyond reason": (lambda d: d["preprocessing"].update(mean=[1e300, 0.0]), "Expected `float` <= 1000000.0"),
    "too much padding": (lambda d: d["preprocessing"].update(crop_padding=65), "Expected `int` <= 64"),
}


@pytest.mark.parametrize("way", WRONG_PLANS)
def test_a_plan_that_is_wrong_is_refused_with_the_reason(data: bytes, way: str) -> None:
    change, complaint = WRONG_PLANS[way]
    header, document, weights = _unpack(data)
    change(document)
    assert complaint in _refused(_pack(header, document, weights))


WRONG_TENSORS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "missing": (lambda h: h.pop("bn1.running_var"), "tensor 'bn1.running_var' is missing"),
    "extra": (lambda h: h.update(more=h["fc.bias"]), "tensor 'more' belongs to no operation of the plan"),
    "extra with a long name": (lambda h: h.update({"\n" * 999: h["fc.bias"]}), "tensor '????"),
    "of half precision": (lambda h: h["fc.bias"].update(dtype="F16"), "must be F32 [5], the file says F16 [5]"),
    "of integers": (lambda h: h["fc.bias"].update(dtype="I32"), "must be F32 [5], the file says I32 [5]"),
    "of another shape": (lambda h: h["fc.weight"].update(shape=[12, 5]), "'fc.weight' must be F32 [5, 12]"),
    "of a flat shape": (lambda h: h["fc.weight"].update(shape=[60]), "'fc.weight' must be F32 [5, 12]"),
    "of no shape": (lambda h: h["fc.weight"].pop("shape"), "must be described by dtype, shape and data_offsets"),
    "with more fields": (lambda h: h["fc.bias"].update(strides=[1]), "must be described by dtype, shape and"),
    "described by a list": (lambda h: h.update({"fc.bias": []}), "must be described by dtype, shape and data_offsets"),
    "with fractions in its shape": (lambda h: h["fc.bias"].update(shape=[5.0]), "not a sound safetensors file"),
    "with truths for offsets": (lambda h: h["bn1.bias"].update(data_offsets=[False, 16]), "not a sound safetensors"),
    "before the weights": (lambda h: h["fc.bias"].update(data_offsets=[-20, 0]), "not a sound safetensors file"),
    "beyond the weights": (
        lambda h: h["fc.bias"].update(data_offsets=[offset + 2**40 for offset in h["fc.bias"]["data_offsets"]]),
        "not a sound safetensors file",
    ),
    "on top of another": (
        lambda h: h["bn1.bias"].update(data_offsets=h["bn1.weight"]["data_offsets"]),
        "not a sound safetensors file",
    ),
    "with offsets exchanged": (lambda h: h["fc.bias"]["data_offsets"].reverse(), "not a sound safetensors file"),
    "with too few bytes": (
        lambda h: h["fc.bias"].update(data_offsets=[h["fc.bias"]["data_offsets"][0]] * 2),
        "not a sound safetensors file",
    ),
    "with one offset": (lambda h: h["fc.bias"].update(data_offsets=[0]), "not a sound safetensors file"),
    "with a number among the metadata": (lambda h: h["__metadata__"].update(epoch=3), "not a sound safetensors file"),
}


@pytest.mark.parametrize("way", WRONG_TENSORS)
def test_a_tensor_that_is_wrong_is_refused_with_the_reason(data: bytes, way: str) -> None:
    change, complaint = WRONG_TENSORS[way]
    header, _, weights = _unpack(data)
    change(header)
    assert complaint in _refused(_pack(header, None, weights))


def test_a_gap_between_tensors_is_refused(data: bytes) -> None:
    # As many bytes as there should be, but the last tensor moved on by four and shortened to fit.
    header, _, weights = _unpack(data)
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    header[last]["data_offsets"][0] += 4
    assert "not a sound safetensors file" in _refused(_pack(header, None, weights))


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("fc.weight", np.nan, "tensor 'fc.weight' holds NaN or infinity"),
        ("conv1.weight", -np.inf, "tensor 'conv1.weight' holds NaN or infinity"),
        ("bn1.running_var", -1e-30, "tensor 'bn1.running_var' holds a negative variance"),
    ],
)
def test_a_number_that_no_weight_may_be_is_refused(data: bytes, name: str, value: float, complaint: str) -> None:
    weights = {key: array.copy() for key, array in _network().weights.items()}
    weights[name].reshape(-1)[-1] = value
    assert complaint in _refused(safetensors.numpy.save(weights, metadata=_unpack(data)[0]["__metadata__"]))
    with pytest.raises(NetworkError, match=complaint):
        Network(_network().plan, weights)


def test_weights_must_be_those_of_the_plan() -> None:
    network = _network()
    with pytest.raises(NetworkError, match=r"the weights' names are not the plan's: extra, fc.bias"):
        Network(network.plan, {**{n: w for n, w in network.weights.items() if n != "fc.bias"}, "extra": np.zeros(1)})
    with pytest.raises(NetworkError, match=r"'fc.bias' must be float32 \(5,\), got float64 \(5,\)"):
        Network(network.plan, {**network.weights, "fc.bias": np.zeros(5)})  # type: ignore[dict-item]


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"nothing\.safetensors: cannot read the network: No such file"):
        Network.load(tmp_path / "nothing.safetensors")
    with pytest.raises(NetworkError, match="cannot read the network: Is a directory"):
        Network.load(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"nowhere/net\.safetensors: cannot write the network: No such file"):
        _network().save(tmp_path / "nowhere" / "net.safetensors")


def test_a_file_over_the_cap_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(MAXIMUM_FILE_BYTES + 1)  # sparse: takes no space
    with pytest.raises(NetworkError, match="more than the 1090519040 bytes that a network file may have"):
        Network.load(path)


_watched: list[list[str]] = []


def _note_event(event: str, _arguments: tuple[object, ...]) -> None:
    for events in _watched:
        events.append(event)


def test_reading_a_network_executes_imports_and_opens_nothing(data: bytes) -> None:
    Network.from_bytes(data)  # what the interpreter imports by itself on the first call is not the file's doing
    sys.addaudithook(_note_event)  # cannot be taken back, but is deaf outside these lines
    events: list[str] = []
    _watched.append(events)
    try:
        Network.from_bytes(data)
    finally:
        _watched.remove(events)
    assert not {"exec", "compile", "import", "pickle.find_class", "open", "os.system", "subprocess.Popen"} & set(events)
