from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from distreal_edge.aggregator import REASONS, check_sender, check_update, reason_of
from distreal_edge.device import encode_update, read_update
from distreal_edge.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.device import Update
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest

FULL_MACS = 1000


@pytest.fixture
def check(network: Network, manifest_of: Callable[..., Manifest]) -> Callable[..., None]:
    """Check an update of pi-1 that holds 100 images, as the aggregator would."""

    def run(update: Update, manifest: Manifest | None = None, written: Any = (), **changed: Any) -> None:
        known: dict[str, Any] = {
            "manifest": manifest or manifest_of(network), "device": "pi-1", "uid": update.header.uid,
            "announced_images": 100, "weights": network.weights, "full_macs": FULL_MACS,
        }  # fmt: skip
        check_update(read_update(encode_update(update, *written), network.plan), **{**known, **changed})

    return run


def test_a_sound_update_is_taken(check: Callable[..., None], maker: Any) -> None:
    check(maker.update(maker.log("ordered", 3), statistics_images=32, macs=3))
    check(maker.update([]))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"device": "pi-2"}, "identity"),
        ({"round": 2}, "round"),
        ({"model": "0" * 64}, "model"),
        ({"statistics_images": 33}, "samples"),
        ({"macs": 10**9}, "samples"),
    ],
)
def test_an_update_that_contradicts_the_round_is_refused(
    check: Callable[..., None], maker: Any, header: dict[str, Any], reason: str
) -> None:
    update = maker.update(maker.log("ordered", 1), **header)
    with pytest.raises(ProtocolError) as caught:
        check(update)
    assert reason_of(caught.value) == reason


def test_an_update_under_another_uid_than_its_topic_is_refused(check: Callable[..., None], maker: Any) -> None:
    with pytest.raises(ProtocolError, match=r"^identity: "):
        check(maker.update([]), uid="another")


def test_an_update_for_an_earlier_round_is_late(
    check: Callable[..., None], maker: Any, network: Network, manifest_of: Callable[..., Manifest]
) -> None:
    with pytest.raises(ProtocolError, match=r"^late: round 1 is closed"):
        check(maker.update([]), manifest_of(network, number=2))


@pytest.mark.parametrize(("images", "sound"), [(308, True), (309, False)])
def test_images_are_capped_at_what_the_device_announced(
    check: Callable[..., None], maker: Any, images: int, sound: bool
) -> None:
    # 100 images, at most 3 epochs, and a mini-batch of 8 for rounding up.
    (subset, _), *_ = maker.log("ordered", 1)
    update = maker.update([(subset, images)])
    if sound:
        check(update)
    else:
        with pytest.raises(ProtocolError, match=r"^samples: 309 images, more than the 308"):
            check(update)


def test_macs_are_capped_at_the_full_network_on_every_image(check: Callable[..., None], maker: Any) -> None:
    (subset, _), *_ = maker.log("ordered", 1)
    check(maker.update([(subset, 7)], macs=7 * FULL_MACS))
    with pytest.raises(ProtocolError, match=r"^samples: "):
        check(maker.update([(subset, 7)], macs=7 * FULL_MACS + 1))


def test_nothing_may_be_trained_in_a_round_that_only_measures(
    check: Callable[..., None], maker: Any, network: Network, manifest_of: Callable[..., Manifest]
) -> None:
    manifest = manifest_of(network, measure_only=True)
    check(maker.update([], statistics_images=32), manifest)
    with pytest.raises(ProtocolError, match=r"^samples: "):
        check(maker.update(maker.log("ordered", 1)), manifest)


def test_a_device_has_no_more_images_to_measure_on_than_it_announced(check: Callable[..., None], maker: Any) -> None:
    with pytest.raises(ProtocolError, match=r"^samples: statistics"):
        check(maker.update([], statistics_images=21), announced_images=20)


def test_a_finite_change_that_makes_the_model_infinite_is_refused(
    check: Callable[..., None], maker: Any, network: Network
) -> None:
    network.weights["fc.bias"][1] = 3e38
    update = maker.update(maker.log("ordered", 1))
    update.changes["fc.bias"][1] = 3e38
    with pytest.raises(ProtocolError, match=r"^finite: .*fc\.bias"):
        check(update)
    update.changes["fc.bias"][1] = -3e38
    check(update)


@pytest.mark.parametrize(("encoding", "compression"), [("float16", "none"), ("float32", "zstd"), ("int8", "zstd")])
def test_an_update_must_be_written_down_as_the_round_asks(
    check: Callable[..., None], maker: Any, network: Network, manifest_of: Callable[..., Manifest],
    encoding: Any, compression: Any,
) -> None:  # fmt: skip
    update = maker.update(maker.log("ordered", 2))
    with pytest.raises(ProtocolError, match=r"^type: the round asks for float32 and none"):
        check(update, written=(encoding, compression))
    known = manifest_of(network)
    training = msgspec.structs.replace(known.training, encoding=encoding, compression=compression)
    asking = msgspec.structs.replace(known, training=training)
    check(update, asking, (encoding, compression))
    with pytest.raises(ProtocolError, match=r"^type: "):
        check(update, asking)


def test_who_cannot_be_counted_is_refused_at_once(network: Network, manifest_of: Callable[..., Manifest]) -> None:
    manifest = manifest_of(network)
    selected = set(manifest.selected)
    assert check_sender("pi-1", manifest=manifest, selected=selected, answered={"pi-2"}) is manifest
    for device, given, answered, reason in (
        ("pi-1", None, set(), "late"),
        ("pi-9", manifest, set(), "selection"),
        ("pi-1", manifest, {"pi-1"}, "duplicate"),
    ):
        with pytest.raises(ProtocolError) as caught:
            check_sender(device, manifest=given, selected=selected, answered=answered)
        assert reason_of(caught.value) == reason


def test_reasons_are_a_closed_list() -> None:
    assert reason_of(ProtocolError("late: too late")) == "late"
    assert reason_of(ProtocolError("something else: entirely")) == "form"
    assert all(text and text == text.strip() for text in REASONS.values())


def test_a_check_leaves_update_and_model_alone(check: Callable[..., None], maker: Any, network: Network) -> None:
    update = maker.update(maker.log("ordered", 2))
    before = (network.to_bytes(), {name: change.tobytes() for name, change in update.changes.items()})
    check(update)
    after = (network.to_bytes(), {name: change.tobytes() for name, change in update.changes.items()})
    assert before == after
    assert msgspec.structs.asdict(update.header)["images"] == int(np.sum(update.kept_images))
