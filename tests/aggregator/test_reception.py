from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distreal_edge.aggregator import Ledger, Store, StoredUpdate
from distreal_edge.aggregator.inbound import MOST_AT_ONCE, MOST_IN_ALL, PATIENCE_S, Inbound
from distreal_edge.aggregator.ledger import Decision
from distreal_edge.aggregator.reception import Reception
from distreal_edge.device import encode_update
from distreal_edge.transport import CHUNK_BYTES, Ack, FrameReader, Offer, UpdateTopic, decode, encode, split

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

    def offer(self, data: bytes, device: str = "pi-1", uid: str = "u1", **changed: Any) -> Any:
        reader = FrameReader(data)
        known = Offer(uid, 1, self.manifest.model.digest, reader.digest, reader.total_bytes, reader.count)
        offer = msgspec.structs.replace(known, **changed)
        return self._noted(self.reception.offered(device, offer, answered=self.answered), device)

    def take(self, frame: bytes, device: str = "pi-1", uid: str = "u1", index: int = 0) -> Any:
        taken = self.reception.take(UpdateTopic(device, uid, index), frame, answered=self.answered)
        return self._noted(taken, device)

    def send(self, update: Update, device: str | None = None) -> Taken | None:
        data, device, uid = encode_update(update), device or update.header.device, update.header.uid
        taken: Taken | None = self.offer(data, device, uid)
        for index, frame in enumerate(split(data)):
            if taken is None or taken.ack.kind == "resend":
                taken = self.take(frame, device, uid, index)
        return taken

    def restart(self) -> None:
        """Start again with what is on the disk."""
        self.reception = Reception(self.ledger, self.store, self.network, full_macs=1000)
        self.reception.open(self.manifest, self.network, dict.fromkeys(self.manifest.selected, 100))

    def _noted(self, taken: Taken | None, device: str) -> Taken | None:
        for answered, answer in [] if taken is not None else self.reception.settle():
            assert answered == device
            taken = answer
        if taken is not None and taken.counts:
            self.answered.add(device)
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
    data = bytes(2 * CHUNK_BYTES + 10)
    for device in ("stranger", "pi-99"):
        assert desk.offer(data, device).ack.reason.startswith(f"selection: {device} was not selected")
        assert desk.take(split(data)[0], device).ack.kind == "refused"
    desk.reception.close()
    assert desk.offer(data, "pi-2").ack.reason == "late: no round is open"
    assert desk.reception._inbound.arriving() == ()
    assert list((desk.folder / "arriving").iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"round": 2}, "round: round 2 has not been opened"),
        ({"model": "0" * 64}, "model: the update was trained on another model"),
        ({"bytes": 2**30, "chunks": 4096}, "size: 1073741824 bytes are more than the "),
    ],
)
def test_an_offer_that_cannot_count_is_refused_before_a_byte_of_it_is_sent(
    desk: Desk, changed: dict[str, Any], reason: str
) -> None:
    taken = desk.offer(bytes(100), **changed)
    assert taken.ack.kind == "refused"
    assert taken.ack.reason.startswith(reason)
    assert list((desk.folder / "arriving").iterdir()) == []
    assert desk.offer(bytes(100), **changed).ack == taken.ack
    assert sum(desk.ledger.refusals().values()) == 1


def test_a_chunk_that_was_not_offered_is_answered_with_the_wish_for_an_offer(desk: Desk) -> None:
    assert desk.take(split(bytes(100))[0]).ack == Ack("u1", "resend", None, ())


def test_chunks_after_a_refusal_get_the_same_answer_and_are_not_counted_again(desk: Desk) -> None:
    data = bytes(2 * CHUNK_BYTES + 10)
    frames = split(data)
    assert desk.offer(data).ack.missing == (0, 1, 2)
    assert desk.take(frames[0]) is None
    first = desk.take(frames[1] + b"longer", index=1)
    assert first.ack.kind == "refused"
    assert first.ack.reason.startswith("chunk: update u1 of pi-1: ")
    for index in (2, 0):
        assert desk.take(frames[index], index=index).ack == first.ack
    assert desk.offer(data).ack == first.ack
    assert desk.ledger.refusals() == {"chunk": 1}
    assert desk.offer(data, uid="u2").ack.kind == "resend"  # a new update is a new chance


def test_a_wrong_digest_refuses_the_update(desk: Desk) -> None:
    data = bytes(2 * CHUNK_BYTES + 10)
    desk.offer(data)
    *frames, last = split(data)
    for index, frame in enumerate(frames):
        assert desk.take(frame, index=index) is None
    assert desk.take(last[:-1] + b"!", index=2).ack.reason.startswith("chunk: ")


@pytest.mark.parametrize("junk", [b"", b"DRCK", bytes(200), b"\xff" * 300_000])
def test_a_frame_that_is_none_is_refused(desk: Desk, junk: bytes) -> None:
    desk.offer(bytes(100))
    assert desk.take(junk).ack.reason.startswith("chunk: ")


def test_an_update_that_is_none_is_refused_for_its_form(desk: Desk) -> None:
    data = b"\x10" + bytes(7) + b"no safetensors at all"
    desk.offer(data)
    (frame,) = split(data)
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
    desk.offer(bytes(data), uid=uid)
    taken = desk.take(frame, uid=uid)
    assert taken.ack.kind in {"durable", "refused"}
    assert decode(Ack, encode(taken.ack), where="ack") == taken.ack
    assert desk.network.to_bytes() == before
    if taken.counts:  # the damage hit a number; make room for the next one
        desk.ledger.lose_update(StoredUpdate(uid, 1, "pi-1"), Decision(0.0, 1, "pi-1", "lost", "for the next one"))
        desk.store.update_path("pi-1", uid).unlink()
        desk.answered.clear()


def test_no_more_is_asked_for_at_once_than_the_broker_is_to_hold(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distreal_edge.transport.chunks.CHUNK_BYTES", 100)
    data = bytes(100 * 3 * MOST_AT_ONCE)
    frames = split(data)
    assert desk.offer(data).ack.missing == tuple(range(MOST_AT_ONCE))
    asked, sent = list(range(MOST_AT_ONCE)), 0
    while sent < len(frames) - 1:
        taken = desk.take(frames[asked[sent]], index=asked[sent])
        sent += 1
        asked += () if taken is None else taken.ack.missing
        assert len(asked) - sent <= MOST_AT_ONCE
    assert asked == list(range(len(frames)))


def offer_of(data: bytes) -> Offer:
    reader = FrameReader(data)
    return Offer("u", 1, "0" * 64, reader.digest, reader.total_bytes, reader.count)


def test_however_many_devices_come_no_more_is_asked_for_in_all_than_the_broker_is_to_hold(tmp_path: Path) -> None:
    inbound, offer = Inbound(tmp_path, 2**30), offer_of(bytes(20 * CHUNK_BYTES))
    asked = [len(inbound.offered(f"d{number}", offer, 0.0)) for number in range(1000)]
    assert asked[0] == MOST_AT_ONCE
    assert sum(asked) == MOST_IN_ALL


def test_devices_that_wait_are_asked_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    inbound, frames, data = Inbound(tmp_path, 2**30), split(bytes(100)), bytes(100)
    sending = [f"d{number}" for number in range(100) if inbound.offered(f"d{number}", offer_of(data), 0.0)]
    assert sending == [f"d{number}" for number in range(MOST_IN_ALL)]
    assert inbound.turns(1.0) == []
    assert inbound.offered("d50", offer_of(data), 1.0) == ()  # it asks again, and keeps its place
    order = list(sending)
    for device in order:
        inbound.add(UpdateTopic(device, "u", 0), frames[0], 1.0)
        order += [each for each, _, _ in inbound.turns(1.0)]
    assert order == [f"d{number}" for number in range(100)]


def test_whoever_was_asked_and_is_gone_keeps_nobody_waiting_for_long(tmp_path: Path) -> None:
    inbound, offer = Inbound(tmp_path, 2**30), offer_of(bytes(20 * CHUNK_BYTES))
    for number in range(MOST_IN_ALL + 1):
        inbound.offered(f"d{number}", offer, 0.0)
    assert inbound.turns(PATIENCE_S) == []
    ((device, uid, missing), *_) = inbound.turns(PATIENCE_S + 0.1)
    assert (device, uid, missing) == ("d4", "u", (0,))


def test_updates_that_are_whole_are_noted_together_and_answered_then(desk: Desk, maker: Any) -> None:
    updates = [maker.update(maker.log("ordered", 2), device=f"pi-{number}", uid=f"u{number}") for number in (1, 2)]
    for update in updates:
        device, uid, data = update.header.device, update.header.uid, encode_update(update)
        reader = FrameReader(data)
        offer = Offer(uid, 1, desk.manifest.model.digest, reader.digest, reader.total_bytes, reader.count)
        topic, (frame,) = UpdateTopic(device, uid, 0), split(data)
        desk.reception.offered(device, offer, answered=())
        assert desk.reception.take(topic, frame, answered=()) is None
        # It says it once more before it has an answer, and has another one.
        assert desk.reception.offered(device, offer, answered=()) is None
        assert desk.reception.take(topic, frame, answered=()) is None
        second = desk.reception.offered(device, msgspec.structs.replace(offer, uid="other"), answered=())
        assert second is not None
        assert second.ack.reason == f"duplicate: {device} has answered round 1 already"
    assert desk.ledger.updates(1) == []
    settled = desk.reception.settle()
    assert [(device, taken.ack.uid, taken.ack.kind, taken.counts) for device, taken in settled] == [
        ("pi-1", "u1", "durable", True),
        ("pi-2", "u2", "durable", True),
    ]
    assert [stored.uid for stored in desk.ledger.updates(1)] == ["u1", "u2"]
    assert desk.reception.settle() == []


def test_what_has_arrived_outlives_the_aggregator(desk: Desk, maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distreal_edge.transport.chunks.CHUNK_BYTES", 400)
    update = maker.update(maker.log("ordered", 2), uid="u1")
    data = encode_update(update)
    frames = split(data)
    assert len(frames) > 3
    desk.offer(data)
    for index in (0, 2):
        desk.take(frames[index], index=index)
    desk.restart()
    assert desk.take(frames[1], index=1).ack.missing == ()  # not offered to this run yet
    missing = tuple(index for index in range(len(frames)) if index not in (0, 2))
    assert desk.offer(data).ack.missing == missing[:MOST_AT_ONCE]
    for index in missing:
        taken = desk.take(frames[index], index=index)
    assert taken.counts
    assert desk.store.load_update("pi-1", "u1") == data
    assert list((desk.folder / "arriving").iterdir()) == []


def test_chunks_that_the_disk_has_changed_are_asked_for_again(
    desk: Desk, maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distreal_edge.transport.chunks.CHUNK_BYTES", 400)
    data = encode_update(maker.update(maker.log("ordered", 2), uid="u1"))
    frames = split(data)
    desk.offer(data)
    for index, frame in enumerate(frames[:-1]):
        desk.take(frame, index=index)
    (part,) = (desk.folder / "arriving").glob("*.part")
    changed = bytearray(part.read_bytes())
    changed[400] ^= 4
    part.write_bytes(changed)
    assert desk.take(frames[-1], index=len(frames) - 1).ack == Ack("u1", "resend", None, (1,))
    assert desk.take(frames[1], index=1).counts
    assert desk.ledger.refusals() == {}


def test_a_file_that_was_stored_and_not_noted_is_not_sent_again(desk: Desk, maker: Any) -> None:
    data = encode_update(maker.update(maker.log("ordered", 2), uid="u1"))
    desk.store.update_path("pi-1", "u1").write_bytes(data)
    taken = desk.offer(data)
    assert taken.ack.kind == "durable"
    assert taken.counts
    assert [stored.uid for stored in desk.ledger.updates(1)] == ["u1"]


def test_a_full_disk_is_told_and_nothing_answered_until_there_is_room(
    desk: Desk, maker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = encode_update(maker.update(maker.log("ordered", 2), uid="u1"))
    with monkeypatch.context() as patch:
        patch.setattr("distreal_edge.aggregator.inbound.SPARE_BYTES", 2**60)
        assert desk.offer(data) is None
        assert desk.offer(data) is None
    assert caplog.text.count("make room, and it comes again") == 1
    assert desk.offer(data).ack.kind == "resend"
    assert desk.take(split(data)[0]).counts


def test_a_folder_that_cannot_be_synced_leaves_updates_without_an_answer_until_they_are_offered_again(
    desk: Desk, maker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_folder: Path) -> None:
        raise OSError(28, "No space left on device")

    data = encode_update(maker.update(maker.log("ordered", 2), uid="u1"))
    desk.offer(data)
    with monkeypatch.context() as patch:
        patch.setattr("distreal_edge.aggregator.store.sync_folder", full)
        assert desk.take(split(data)[0]) is None
    assert "cannot be synced: No space left on device" in caplog.text
    assert desk.ledger.updates(1) == []
    assert desk.offer(data).counts
    assert [stored.uid for stored in desk.ledger.updates(1)] == ["u1"]


def test_what_is_left_of_devices_that_take_no_part_is_removed(desk: Desk) -> None:
    folder = desk.folder / "arriving"
    for name in ("pi-9.u1.part", "pi-9.u1.part.log", "pi-1.old.part", "pi-1.old.part.log", "notes.txt"):
        (folder / name).write_bytes(b"left")
    desk.restart()
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "pi-1.old.part", "pi-1.old.part.log"]
    desk.offer(bytes(2 * CHUNK_BYTES + 10))
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt"]


def test_what_has_not_come_whole_when_the_round_closes_is_late(desk: Desk) -> None:
    data = bytes(2 * CHUNK_BYTES)
    frames = split(data)
    desk.offer(data)
    desk.take(frames[0])
    ((device, ack),) = desk.reception.close()
    assert (device, ack.kind) == ("pi-1", "refused")
    assert ack.reason == "late: the round closed before all of it had come"
    assert list((desk.folder / "arriving").iterdir()) == []
    desk.reception.open(desk.manifest, desk.network, {"pi-1": 100})
    assert desk.take(frames[1], index=1).ack == ack
    assert desk.ledger.refusals() == {"late": 1}


def test_refusals_are_remembered_for_a_bounded_number_of_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("distreal_edge.aggregator.inbound._MOST_REFUSALS", 2)
    inbound = Inbound(tmp_path, 1000)
    for device in ("a", "b", "c"):
        inbound.refuse(device, "u", "late: it is")
    assert inbound.refused("a", "u") is None
    assert inbound.refused("b", "u") is not None
    assert inbound.refused("c", "other") is None


def test_a_refusal_can_be_sent_and_logged_whatever_it_quotes(tmp_path: Path) -> None:
    ack = Inbound(tmp_path, 1000).refuse("a", "u", "form: \ud800 \n \x1b[2J ü")
    assert ack.reason == "form: ? ? ?[2J ü"
    assert decode(Ack, encode(ack), where="ack") == ack


def test_a_refusal_is_short_enough_for_an_answer(tmp_path: Path) -> None:
    assert len(str(Inbound(tmp_path, 1000).refuse("a", "u", "x" * 10_000).reason)) == 500


def test_a_late_update_is_counted_by_its_staleness_whoever_sends_it(desk: Desk) -> None:
    fifth = msgspec.structs.replace(desk.manifest, number=5)
    desk.reception.open(fifth, desk.network, dict.fromkeys(fifth.selected, 100))
    for device, of_round in (("pi-1", 4), ("pi-2", 2), ("pi-9", 4)):  # the last was not even selected
        taken = desk.offer(b"any", device, f"u-{device}", round=of_round)
        assert taken.ack.reason == f"late: round {of_round} is closed"
    assert desk.ledger.staleness() == {1: 2, 3: 1}
    assert desk.ledger.refusals() == {"late": 3}
    desk.reception.close()
    assert desk.offer(b"any", "pi-3", "u-pi-3", round=5).ack.reason == "late: no round is open"
    assert desk.ledger.staleness() == {1: 3, 3: 1}
    decided = [(each.device, each.what) for each in desk.ledger.decisions(5)]
    assert decided == [(device, "refused") for device in ("pi-1", "pi-2", "pi-9", "pi-3")]
