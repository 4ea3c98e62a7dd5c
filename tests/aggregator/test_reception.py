from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distreal_edge.aggregator import Ledger, Store
from distreal_edge.aggregator.inbound import QUIET_S, Inbound
from distreal_edge.aggregator.reception import Reception
from distreal_edge.device import encode_update
from distreal_edge.transport import CHUNK_BYTES, Ack, UpdateTopic, decode, encode, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from distreal_edge.aggregator.reception import Taken
    from distreal_edge.device import Update
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest


class Desk:
    """A reception with an open round, and the state behind it."""

    def __init__(self, folder: Path, network: Network, manifest: Manifest) -> None:
        self.folder, self.network, self.manifest = folder, network, manifest
        self.ledger, self.store = Ledger(folder / "ledger.sqlite"), Store(folder)
        self.ledger.open_round(manifest.number, b"", 0.0, dict.fromkeys(manifest.selected, 100))
        self.reception = Reception(self.ledger, self.store, network, full_macs=1000)
        self.reception.open(manifest, network, dict.fromkeys(manifest.selected, 100))
        self.answered: set[str] = set()

    def take(self, frame: bytes, device: str = "pi-1", uid: str = "u1", index: int = 0, now: float = 0.0) -> Any:
        taken = self.reception.take(UpdateTopic(device, uid, index), frame, answered=self.answered, now=now)
        if taken is not None and taken.counts:
            self.answered.add(device)
        return taken

    def send(self, update: Update, device: str | None = None) -> Taken | None:
        taken = None
        for frame in split(encode_update(update)):
            taken = self.take(frame, device or update.header.device, update.header.uid)
        return taken


@pytest.fixture
def desk(tmp_path: Path, network: Network, manifest_of: Callable[..., Manifest]) -> Iterator[Desk]:
    opened = Desk(tmp_path, network, manifest_of(network))
    yield opened
    opened.ledger.__exit__()


def test_a_sound_update_is_on_disk_and_noted_when_it_is_answered(desk: Desk, maker: Any) -> None:
    update = maker.update(maker.log("ordered", 2), uid="u1")
    taken = desk.send(update)
    assert taken is not None
    assert (taken.ack.uid, taken.ack.kind, taken.counts) == ("u1", "durable", True)
    assert desk.store.load_update("pi-1", "u1") == encode_update(update)
    assert [stored.uid for stored in desk.ledger.updates(1)] == ["u1"]


def test_an_update_that_comes_again_is_acknowledged_again_and_counted_once(desk: Desk, maker: Any) -> None:
    update = maker.update(maker.log("ordered", 2))
    desk.send(update)
    again = desk.send(update)
    assert again is not None
    assert (again.ack.kind, again.counts) == ("durable", False)
    assert len(desk.ledger.updates(1)) == 1
    # Also from a device that has another idea of what it sent under this uid, and after the round.
    desk.reception.close()
    late = desk.take(b"anything", "pi-1", update.header.uid)
    assert late.ack.kind == "durable"
    assert desk.ledger.refusals() == {}


def test_a_second_update_of_a_device_in_a_round_is_refused(desk: Desk, maker: Any) -> None:
    first, second = maker.update(maker.log("ordered", 1)), maker.update(maker.log("ordered", 1))
    desk.send(first)
    taken = desk.send(second)
    assert taken is not None
    assert taken.ack.kind == "refused"
    assert taken.ack.reason == "duplicate: pi-1 has answered round 1 already"
    assert desk.ledger.refusals() == {"duplicate": 1}
    assert desk.store.load_update("pi-1", first.header.uid) == encode_update(first)


def test_another_device_cannot_acknowledge_an_update_away(desk: Desk, maker: Any) -> None:
    honest = maker.update(maker.log("ordered", 1), device="pi-1", uid="shared")
    forged = maker.update(maker.log("ordered", 1), device="pi-2", uid="shared")
    assert desk.send(forged).counts  # type: ignore[union-attr]
    taken = desk.send(honest)
    assert taken is not None
    assert taken.counts
    assert desk.store.load_update("pi-1", "shared") == encode_update(honest)


def test_nothing_is_kept_of_devices_that_take_no_part(desk: Desk) -> None:
    frame = split(bytes(3 * CHUNK_BYTES))[0]
    for device in ("stranger", "pi-99"):
        taken = desk.take(frame, device)
        assert taken.ack.reason.startswith(f"selection: {device} was not selected")
    desk.reception.close()
    assert desk.take(frame, "pi-2").ack.reason == "late: no round is open"
    assert desk.reception._inbound.arriving() == ()


def test_chunks_after_a_refusal_get_the_same_answer_and_are_not_counted_again(desk: Desk) -> None:
    frames = split(bytes(3 * CHUNK_BYTES))
    damaged = frames[1][:-1] + b"x"
    assert desk.take(frames[0]) is None
    first = desk.take(damaged + b"longer")
    assert first.ack.kind == "refused"
    assert first.ack.reason.startswith("chunk: update u1 of pi-1: ")
    for frame in (frames[2], frames[0]):
        assert desk.take(frame).ack == first.ack
    assert desk.ledger.refusals() == {"chunk": 1}
    assert desk.take(frames[0], uid="u2") is None  # a new update is a new chance


def test_a_wrong_digest_refuses_the_update(desk: Desk) -> None:
    *frames, last = split(bytes(2 * CHUNK_BYTES + 10))
    for frame in frames:
        assert desk.take(frame) is None
    assert desk.take(last[:-1] + b"!").ack.reason.startswith("chunk: ")


@pytest.mark.parametrize("junk", [b"", b"DRCK", bytes(200), b"\xff" * 300_000])
def test_a_frame_that_is_none_is_refused(desk: Desk, junk: bytes) -> None:
    assert desk.take(junk).ack.reason.startswith("chunk: ")


def test_an_update_that_is_none_is_refused_for_its_form(desk: Desk) -> None:
    (frame,) = split(b"\x10" + bytes(7) + b"no safetensors at all")
    assert desk.take(frame).ack.reason.startswith("form: ")
    assert desk.ledger.refusals() == {"form": 1}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    header_only=st.booleans(), cut=st.floats(0, 1), number=st.integers(0, 10**9),
)  # fmt: skip
def test_whatever_is_damaged_is_answered_and_never_stops_the_aggregator(
    desk: Desk, maker: Any, places: list[tuple[float, int]], header_only: bool, cut: float, number: int
) -> None:
    uid = f"u{number}"
    before = desk.network.to_bytes()
    data = bytearray(encode_update(maker.update(maker.log("ordered", 2), uid=uid, statistics_images=8)))
    reach = 8 + int.from_bytes(data[:8], "little") if header_only else len(data)
    for place, value in places:
        data[int(place * reach)] = value
    if cut < 0.2:
        del data[int(5 * cut * len(data)) + 1 :]
    (frame,) = split(bytes(data))
    taken = desk.take(frame, uid=uid)
    assert taken.ack.kind in {"durable", "refused"}
    assert decode(Ack, encode(taken.ack), where="ack") == taken.ack
    assert desk.network.to_bytes() == before
    if taken.counts:  # the damage hit a number; make room for the next one
        desk.ledger._database.execute("DELETE FROM updates")
        desk.answered.clear()


def test_an_update_too_large_for_the_network_is_refused_at_its_first_chunk(desk: Desk) -> None:
    frame = split(bytes(40 * 2**20))[0]
    taken = desk.take(frame)
    assert taken.ack.reason.startswith("chunk: ")
    assert "at most" in taken.ack.reason


def test_missing_chunks_are_asked_for_after_a_while_of_silence(desk: Desk) -> None:
    frames = split(bytes(4 * CHUNK_BYTES))
    desk.take(frames[1], now=10.0)
    desk.take(frames[3], now=11.0)
    assert desk.reception.quiet(11.0 + QUIET_S - 0.01) == []
    ((device, ack),) = desk.reception.quiet(11.0 + QUIET_S)
    assert (device, ack.uid, ack.kind, ack.missing) == ("pi-1", "u1", "resend", (0, 2))
    assert desk.reception.quiet(11.0 + QUIET_S + 0.1) == []
    desk.take(frames[3], now=20.0)  # brings nothing new
    assert len(desk.reception.quiet(11.0 + 2 * QUIET_S)) == 1


def test_what_has_not_come_whole_when_the_round_closes_is_late(desk: Desk) -> None:
    frames = split(bytes(2 * CHUNK_BYTES))
    desk.take(frames[0])
    ((device, ack),) = desk.reception.close()
    assert (device, ack.kind) == ("pi-1", "refused")
    assert ack.reason == "late: the round closed before all of it had come"
    assert desk.reception.quiet(1e9) == []
    desk.reception.open(desk.manifest, desk.network, {"pi-1": 100})
    assert desk.take(frames[1]).ack == ack
    assert desk.ledger.refusals() == {"late": 1}


def test_refusals_are_remembered_for_a_bounded_number_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distreal_edge.aggregator.inbound._MOST_REFUSALS", 2)
    inbound = Inbound(1000)
    for device in ("a", "b", "c"):
        inbound.refuse(device, "u", "late: it is")
    assert inbound.refused("a", "u") is None
    assert inbound.refused("b", "u") is not None
    assert inbound.refused("c", "other") is None


def test_a_refusal_can_be_sent_and_logged_whatever_it_quotes() -> None:
    ack = Inbound(1000).refuse("a", "u", "form: \ud800 \n \x1b[2J ü")
    assert ack.reason == "form: ? ? ?[2J ü"
    assert decode(Ack, encode(ack), where="ack") == ack


def test_a_refusal_is_short_enough_for_an_answer() -> None:
    assert len(str(Inbound(1000).refuse("a", "u", "x" * 10_000).reason)) == 500
