from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.errors import ProtocolError
from distreal_edge.transport import messages
from distreal_edge.transport.messages import (
    Ack,
    AggregatorHealth,
    AggregatorState,
    AnyAggregatorState,
    BlobReference,
    DeviceHealth,
    DeviceState,
    Manifest,
    Offer,
    Training,
    Want,
    decode,
    encode,
)

KINDS = [Ack, AggregatorHealth, AggregatorState, DeviceHealth, DeviceState, Manifest, Offer, Want]
DIGEST = "0f" * 32


def manifest(**changes: Any) -> Manifest:
    return msgspec.structs.replace(
        Manifest(
            number=3,
            model=BlobReference(DIGEST, 262_145, 2),
            table=BlobReference(DIGEST, 900, 1),
            ceiling=0.5,
            deadline_s=1_700_000_060.5,
            train_until_s=1_700_000_050.0,
            selected=("pi-1", "pi-2"),
            seed=7,
            draw="ordered",
            training=Training(32, 0.1, 0.9, 5e-4, 1.0, 4.0, 256),
        ),
        **changes,
    )


HEALTH = DeviceHealth(1.7e9, 2.5, 10**9, 61.5, 3, 2, 120.0, 1, 4, 17, 1.25, 0.4)
EXAMPLES = [
    AggregatorState("online", 1763700000000, "kitchen"),
    Offer("u1", 3, "a" * 64, "b" * 64, 262145, 2),
    DeviceState("training", 7, 6000, "0.1.0"),
    HEALTH,
    AggregatorHealth(1.7e9, 3, 20, "collecting", 0.81, ("pi-1", "pi-2"), ("pi-1",)),
    manifest(),
    Want(DIGEST, (0, 4095)),
    Ack("u1", "durable", None),
    Ack("u1", "refused", "holds NaN"),
    Ack("u1", "resend", None, (1, 2)),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_reads_back_as_it_was_written(message: msgspec.Struct) -> None:
    assert decode(type(message), encode(message), where="t") == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_field_but_those_with_a_default_is_required_and_no_other_is_taken(message: msgspec.Struct) -> None:
    fields = json.loads(encode(message))
    required = {field.name for field in msgspec.structs.fields(message) if field.required}
    for name in required:
        with pytest.raises(ProtocolError, match=name):
            decode(type(message), json.dumps({k: v for k, v in fields.items() if k != name}).encode(), where="t")
    with pytest.raises(ProtocolError, match="surprise"):
        decode(type(message), json.dumps({**fields, "surprise": 1}).encode(), where="t")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"number": 0}, r"\$\.number"),
        ({"number": True}, r"\$\.number"),
        ({"number": "3"}, r"\$\.number"),
        ({"number": 3.5}, r"\$\.number"),
        ({"ceiling": 0}, r"\$\.ceiling"),
        ({"ceiling": 1.01}, r"\$\.ceiling"),
        ({"ceiling": None}, r"\$\.ceiling"),
        ({"deadline_s": 1e12}, r"\$\.deadline_s"),
        ({"train_until_s": 1_700_000_061.0}, "after deadline_s"),
        ({"selected": ["a/b"]}, r"\$\.selected\[0\]"),
        ({"selected": ["a", "a"]}, "twice"),
        ({"seed": 2**63}, r"\$\.seed"),
        ({"draw": "Ordered"}, r"\$\.draw"),
        ({"model": {"digest": DIGEST, "bytes": 262_145, "chunks": 1}}, "make 2 chunks"),
        ({"model": {"digest": "zz" * 32, "bytes": 1, "chunks": 1}}, r"\$\.model\.digest"),
        ({"model": {"digest": DIGEST, "bytes": 2**31, "chunks": 8192}}, r"\$\.model\.bytes"),
    ],
)
def test_a_manifest_out_of_bounds_is_refused_with_its_place(change: dict[str, Any], path: str) -> None:
    fields = {**json.loads(encode(manifest())), **change}
    with pytest.raises(ProtocolError, match=f"topic/x: not a Manifest: .*{path}"):
        decode(Manifest, json.dumps(fields).encode(), where="topic/x")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '"1"', "[]"])
@pytest.mark.parametrize("field", ["lr", "momentum", "weight_decay", "epochs", "most_epochs"])
def test_a_training_number_that_is_no_finite_number_is_refused(field: str, number: str) -> None:
    fields = json.loads(encode(manifest()))
    fields["training"][field] = "HERE"
    with pytest.raises(ProtocolError, match="not a Manifest"):
        decode(Manifest, json.dumps(fields).replace('"HERE"', number).encode(), where="t")


def test_training_cannot_allow_less_than_it_asks_for() -> None:
    fields = json.loads(encode(manifest()))
    fields["training"] |= {"epochs": 2.0, "most_epochs": 1.0}
    with pytest.raises(ProtocolError, match=r"most_epochs 1\.0 is less than epochs 2.0"):
        decode(Manifest, json.dumps(fields).encode(), where="t")


def test_what_the_other_side_would_refuse_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match=r"outgoing DeviceHealth.*\$\.cores"):
        encode(msgspec.structs.replace(HEALTH, cores=float("nan")))


def test_an_acknowledgement_must_make_sense() -> None:
    with pytest.raises(ProtocolError, match="reason"):
        Ack("u1", "refused", None)
    with pytest.raises(ProtocolError, match="resend"):
        Ack("u1", "durable", None, (1,))
    with pytest.raises(ProtocolError, match=r"t: .*reason"):
        decode(Ack, b'{"uid":"u1","kind":"refused","reason":null}', where="t")


def test_ten_thousand_devices_fit_into_a_manifest_and_one_more_is_refused() -> None:
    devices = tuple(f"device-{number:05}-{'x' * 40}" for number in range(10_001))
    assert decode(Manifest, encode(manifest(selected=devices[:-1])), where="t").selected == devices[:-1]
    with pytest.raises(ProtocolError, match="selected"):
        encode(manifest(selected=devices))


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_over_the_limit_is_refused_before_it_is_parsed(kind: type[msgspec.Struct]) -> None:
    limit = 1024 * 1024 if kind in {Manifest, AggregatorHealth} else 64 * 1024
    with pytest.raises(ProtocolError, match=f"at most {limit}"):
        decode(kind, b" " * (limit + 1), where="t")


def test_nesting_that_exhausts_the_stack_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode(Want, b'{"digest":' + b"[" * 60_000, where="t")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
field_names = sorted({field.name for kind in KINDS for field in msgspec.structs.fields(kind)})


@given(
    kind=st.sampled_from(KINDS),
    payload=st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(field_names), json_values).map(lambda value: json.dumps(value).encode()),
)
def test_nothing_that_arrives_raises_anything_but_a_protocol_error(kind: type[msgspec.Struct], payload: bytes) -> None:
    words = "some/topic: "
    try:
        message = decode(kind, payload, where="some/topic")
    except ProtocolError as error:
        words = str(error)
    else:
        assert isinstance(message, kind)
    assert words.startswith("some/topic: ")


@given(example=st.sampled_from(EXAMPLES), field=st.sampled_from(field_names), value=json_values, data=st.data())
def test_one_wrong_field_never_raises_anything_but_a_protocol_error(
    example: msgspec.Struct, field: str, value: Any, data: st.DataObject
) -> None:
    fields = json.loads(encode(example))
    fields[data.draw(st.sampled_from([field, *fields]))] = value
    try:
        message = decode(type(example), json.dumps(fields).encode(), where="t")
    except ProtocolError:
        return
    assert decode(type(example), encode(message), where="t") == message


def test_every_public_message_is_frozen_and_strict() -> None:
    structs = [value for name in messages.__all__ if isinstance(value := getattr(messages, name), type)]
    assert len(structs) == 11
    for struct in structs:
        assert struct.__struct_config__.frozen
        # Other versions of the protocol may say more.
        assert struct is AnyAggregatorState or struct.__struct_config__.forbid_unknown_fields
