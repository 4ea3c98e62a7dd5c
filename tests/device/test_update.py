from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from distreal_edge.device import Update, UpdateHeader, decode_update, encode_update, most_bytes
from distreal_edge.device import survivors as survivors_module
from distreal_edge.device import update as update_module
from distreal_edge.device.survivors import MAXIMUM_KINDS, SurvivorLog, most_kinds
from distreal_edge.dropout import Subset
from distreal_edge.errors import ProtocolError
from distreal_edge.network import PlanBuilder
from distreal_edge.zoo import mobilenet_v2, resnet20

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.network import Plan

KEY = "distreal_edge_update"


@pytest.fixture(scope="module")
def make_update(plan: Plan) -> Callable[..., Update]:
    """Make a sound update of two kinds of subsets, 12 and 20 images, with statistics."""

    def make(seed: int = 0, **overrides: Any) -> Update:
        rng = np.random.default_rng(seed)
        fields: dict[str, Any] = {
            "uid": "u1",
            "device": "pi",
            "round": 3,
            "model": "a" * 64,
            "images": 32,
            "mini_batches": 5,
            "macs": 10**6,
            "loss": 1.25,
            "statistics_images": 16,
        }
        kept = rng.random((2, plan.filters + 1)) < 0.5
        kept[:, -1] = True
        trained = {
            name: np.any([parameter.touched(mask) for mask in kept], axis=0)
            for name, parameter in plan.parameters.items()
        }
        return Update(
            UpdateHeader(**fields | overrides),
            {name: _random(rng, parameter.shape) * trained[name] for name, parameter in plan.parameters.items()},
            {name: abs(_random(rng, shape)) for name, shape in plan.statistics.items()},
            kept,
            np.array([12, 20], dtype=np.int64),
        )

    return make


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def rewritten(data: bytes, change: Callable[[dict[str, np.ndarray], dict[str, Any]], None]) -> bytes:
    """Read an update by other means, let `change` spoil its tensors and header, and write it again."""
    tensors = dict(safetensors.numpy.load(data))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
    change(tensors, header)
    written: bytes = safetensors.numpy.save(tensors, metadata={KEY: json.dumps(header)})
    return written


def test_an_update_comes_back_as_it_was(plan: Plan, make_update: Callable[..., Update]) -> None:
    sent = make_update()
    got = decode_update(encode_update(sent), plan)
    assert got.header == sent.header
    for mine, other in ((sent.changes, got.changes), (sent.statistics, got.statistics)):
        assert set(mine) == set(other)
        assert all(np.array_equal(mine[name], other[name]) for name in mine)
    assert np.array_equal(got.kept, sent.kept)
    assert np.array_equal(got.kept_images, sent.kept_images)
    assert got.kept.dtype == np.bool_


def test_an_update_without_training_and_without_statistics_comes_back(
    plan: Plan, make_update: Callable[..., Update]
) -> None:
    whole = make_update(images=0, mini_batches=0, loss=None, statistics_images=0)
    nothing = {name: np.zeros_like(change) for name, change in whole.changes.items()}
    empty = Update(whole.header, nothing, {}, *SurvivorLog(plan).arrays())
    got = decode_update(encode_update(empty), plan)
    assert got.statistics == {}
    assert got.kept.shape == (0, plan.filters + 1)
    assert got.header.loss is None


def test_a_network_without_any_filters_has_updates_too() -> None:
    b = PlanBuilder((1, 2, 2))
    plan = b.finish(b.linear("head", b.flatten(b.input), 2))
    log = SurvivorLog(plan)
    log.add(Subset(()), 7)
    header = UpdateHeader(uid="u", device="d", round=1, model="b" * 64, images=7, mini_batches=1)
    changes = {name: np.zeros(parameter.shape, np.float32) for name, parameter in plan.parameters.items()}
    got = decode_update(encode_update(Update(header, changes, {}, *log.arrays())), plan)
    assert got.kept.tolist() == [[True]]
    assert got.kept_images.tolist() == [7]


def spoil(name: str, array: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, _: tensors.update({name: array})


def say(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _, header: header.update(fields)


def _with_value(name: str, value: float) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(tensors: dict[str, Any], _: dict[str, Any]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = value

    return change


def _with_spare_bits(tensors: dict[str, Any], _: dict[str, Any]) -> None:
    tensors["survivors"] = tensors["survivors"] | np.uint8(1)  # 20 filters in 24 bits


def _wrapping_around(tensors: dict[str, Any], _: dict[str, Any]) -> None:
    tensors["survivors"] = np.zeros((3, 3), np.uint8)
    tensors["survivor_images"] = np.array([2**63 - 1, 2**63 - 1, 34])  # 32 in 64 bits


WAYS_TO_BE_WRONG = {
    "format": ("form", say(format=2)),
    "an unknown field": ("form", say(colour="blue")),
    "an identifier with a line feed": ("form", say(uid="u1\n")),
    "an identifier with a slash": ("form", say(device="../pi")),
    "a model that is no digest": ("form", say(model="A" * 64)),
    "round 0": ("form", say(round=0)),
    "a negative count": ("form", say(images=-1)),
    "a loss that is no number": ("form", say(loss="low")),
    "a header that is a list": ("form", lambda _, header: header.clear()),
    "a tensor too many": ("shape", spoil("extra", np.zeros(3, np.float32))),
    "a tensor too few": ("shape", lambda tensors, _: tensors.pop("changes")),
    "no survivors": ("shape", lambda tensors, _: tensors.pop("survivors")),
    "statistics that were not announced": ("shape", say(statistics_images=0)),
    "two axes": ("shape", spoil("changes", np.zeros((1, 1015), np.float32))),
    "an element too few": ("shape", spoil("changes", np.zeros(1014, np.float32))),
    "float64": ("type", spoil("changes", np.zeros(1015))),
    "float16 that was not announced": ("type", spoil("changes", np.zeros(1015, np.float16))),
    "whole numbers": ("type", spoil("changes", np.zeros(1015, np.int32))),
    "an unknown encoding": ("form", say(encoding="int4")),
    "a digest that is none": ("form", say(digest="none")),
    "another digest": ("digest", say(digest="0" * 64)),
    "a changed change": ("digest", _with_value("changes", 0.25)),
    "a changed statistic": ("digest", _with_value("statistics", 0.25)),
    "NaN": ("finite", _with_value("changes", math.nan)),
    "infinity": ("finite", _with_value("changes", -math.inf)),
    "NaN statistics": ("finite", _with_value("statistics", math.nan)),
    "a negative variance": ("finite", _with_value("statistics", -0.1)),
    "changes of what was not trained": ("untrained", spoil("changes", np.ones(1015, np.float32))),
    "survivors that are no filters": ("form", _with_spare_bits),
    "survivors of float32": ("type", spoil("survivors", np.zeros((2, 3), np.float32))),
    "survivors of another network": ("shape", spoil("survivors", np.zeros((2, 4), np.uint8))),
    "one row of survivors too many": ("shape", spoil("survivors", np.zeros((3, 3), np.uint8))),
    "survivors in one line": ("shape", spoil("survivors", np.zeros(6, np.uint8))),
    "survivors without a shape": ("shape", spoil("survivors", np.array(1, np.uint8))),
    "images of int32": ("type", spoil("survivor_images", np.array([12, 20], np.int32))),
    "images that do not add up": ("samples", spoil("survivor_images", np.array([12, 21]))),
    "images below one": ("samples", spoil("survivor_images", np.array([0, 32]))),
    "images that add up by wrapping around": ("samples", _wrapping_around),
    "fewer mini-batches than kinds": ("samples", say(mini_batches=1)),
    "more mini-batches than images": ("samples", say(mini_batches=33)),
    "images without mini-batches": ("samples", say(mini_batches=0)),
}


@pytest.mark.parametrize("way", WAYS_TO_BE_WRONG)
def test_each_way_to_be_wrong_is_refused_with_its_reason(
    plan: Plan, make_update: Callable[..., Update], way: str
) -> None:
    reason, change = WAYS_TO_BE_WRONG[way]
    with pytest.raises(ProtocolError) as caught:
        decode_update(rewritten(encode_update(make_update()), change), plan)
    assert str(caught.value).partition(":")[0] == reason
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 8, b"\xff" * 100, b"\x02" + b"\0" * 7 + b"{}", b"x" * 999])
def test_what_is_no_update_at_all_is_refused(plan: Plan, data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"^form: "):
        decode_update(data, plan)


def test_an_update_that_is_cut_off_or_has_bytes_to_spare_is_refused(
    plan: Plan, make_update: Callable[..., Update]
) -> None:
    data = encode_update(make_update())
    for damaged in (data[:-1], data + b"\0", data[: len(data) // 2]):
        with pytest.raises(ProtocolError, match=r"^form: "):
            decode_update(damaged, plan)


def test_an_update_in_which_a_key_stands_twice_is_refused(plan: Plan, make_update: Callable[..., Update]) -> None:
    data = encode_update(make_update())
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    twice = header[:-1] + b',"survivors":' + msgspec.json.encode(json.loads(header)["survivors"]) + b"}"
    with pytest.raises(ProtocolError, match=r"^form: .* twice"):
        decode_update(len(twice).to_bytes(8, "little") + twice + data[8 + length :], plan)


def test_more_bytes_or_kinds_than_an_update_can_have_are_refused(
    plan: Plan, make_update: Callable[..., Update]
) -> None:
    with pytest.raises(ProtocolError, match=r"^size: "):
        decode_update(b"\0" * (most_bytes(plan) + 1), plan)
    kinds = most_kinds(plan) + 1

    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        tensors.update(survivors=np.zeros((kinds, 3), np.uint8), survivor_images=np.ones(kinds, np.int64))
        header.update(images=kinds, mini_batches=kinds)

    with pytest.raises(ProtocolError, match=r"^size: "):
        decode_update(rewritten(encode_update(make_update()), change), plan)


def test_shapes_that_would_take_all_memory_are_refused_before_any_is_taken(plan: Plan) -> None:
    header = {
        "__metadata__": {KEY: json.dumps({"uid": "u", "device": "d", "round": 1, "model": "a" * 64, "images": 0})},
        "survivors": {"dtype": "U8", "shape": [2**62, 2**62], "data_offsets": [0, 0]},
    }
    text = json.dumps(header).encode()
    with pytest.raises(ProtocolError):
        decode_update(len(text).to_bytes(8, "little") + text, plan)


def test_the_cap_holds_the_largest_sound_update(
    plan: Plan, make_update: Callable[..., Update], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_update()
    kinds = most_kinds(plan)
    # Nothing to spare but for the header.
    monkeypatch.setattr(update_module, "MAXIMUM_HEADER_BYTES", 2048)
    fields = {name: getattr(whole.header, name) for name in whole.header.__struct_fields__}
    header = UpdateHeader(**fields | {"images": kinds, "mini_batches": kinds})
    kept = np.ones((kinds, plan.filters + 1), np.bool_)
    data = encode_update(Update(header, whole.changes, whole.statistics, kept, np.ones(kinds, np.int64)))
    assert len(data) <= most_bytes(plan)
    assert len(decode_update(data, plan).kept_images) == kinds


@pytest.mark.parametrize("network", [resnet20(), mobilenet_v2()], ids=["resnet20", "mobilenet_v2"])
def test_masks_are_bounded_for_wide_networks_and_enough_for_a_long_round(network: Any) -> None:
    plan = network.plan
    assert 2000 < most_kinds(plan) <= MAXIMUM_KINDS
    assert most_kinds(plan) * (plan.filters + 1) <= 2**26
    header = len(encode_update(_nothing_of(plan))) - 4 * sum(math.prod(shape) for shape in plan.tensors.values())
    assert header < update_module.MAXIMUM_HEADER_BYTES / 4


def _nothing_of(plan: Plan) -> Update:
    header = UpdateHeader(
        uid="u" * 64, device="d" * 64, round=1, model="a" * 64, images=0, mini_batches=0, statistics_images=1
    )
    changes = {name: np.zeros(parameter.shape, np.float32) for name, parameter in plan.parameters.items()}
    statistics = {name: np.zeros(shape, np.float32) for name, shape in plan.statistics.items()}
    return Update(header, changes, statistics, *SurvivorLog(plan).arrays())


def test_the_log_counts_images_by_subset(plan: Plan) -> None:
    narrow = Subset((np.array([0]), np.array([2, 3])))
    wide = Subset.full(plan.sizes)
    log = SurvivorLog(plan)
    for subset, images in ((wide, 8), (narrow, 8), (wide, 4)):
        log.add(subset, images)
    kept, images_of = log.arrays()
    assert log.kinds == 2
    assert images_of.tolist() == [12, 8]
    assert np.array_equal(kept, [wide.mask(plan.sizes), narrow.mask(plan.sizes)])


def test_a_full_log_has_room_for_what_it_knows_only(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survivors_module, "MAXIMUM_KINDS", 1)
    log, known = SurvivorLog(plan), Subset.full(plan.sizes)
    assert log.has_room(known)
    log.add(known, 1)
    assert log.has_room(known)
    assert not log.has_room(Subset((np.array([0]), np.array([1]))))
