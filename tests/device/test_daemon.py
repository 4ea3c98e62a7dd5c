"""A device over a real broker, with an aggregator that does what a test tells it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
import pytest

from distreal_edge.device import (
    Availability,
    DeviceDaemon,
    RealBoard,
    Trace,
    TraceBoard,
    belonging,
    decode_update,
    rounds,
    sending,
    upload,
    worker,
)
from distreal_edge.device import daemon as daemon_module
from distreal_edge.errors import DataError, StateError, TransportError
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search import uniform_table
from distreal_edge.status import DeviceStatus, ask
from distreal_edge.transport import (
    Ack,
    BlobReference,
    Connected,
    DeviceHealth,
    DeviceState,
    DeviceTopic,
    EmbeddedBroker,
    FrameReader,
    Message,
    Offer,
    Session,
    Topics,
    UpdateTopic,
    Want,
    check_name,
    chunk_count,
    decode,
    encode,
)
from distreal_edge.zoo import resnet20

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distreal_edge.data import Dataset
    from distreal_edge.device import Board, Update
    from distreal_edge.transport import Manifest

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 20.0
FEDERATION = "fed"


@pytest.fixture(scope="module")
def wide() -> Network:
    """Return a network of two chunks, so that its updates are of two chunks as well."""
    b = PlanBuilder((1, 8, 8))
    x = b.relu(b.batch_norm("bn", b.conv2d("conv", b.input, 8, kernel=3, padding=1, bias=False)))
    x = b.relu(b.linear("hidden", b.flatten(x), 160))
    network = Network.initialise(b.finish(b.linear("head", x, 3)), seed=1)
    assert chunk_count(len(network.to_bytes())) == 2
    return network


@pytest.fixture(scope="module")
def wide_table(wide: Network) -> bytes:
    return uniform_table(wide, batch=8, rows=3, cheapest=0.2).to_bytes()


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as started:
        yield started


class ScriptedAggregator:
    """Publish what a test says, and collect what the device says."""

    def __init__(self, broker: EmbeddedBroker, whole_of: Callable[..., bytes | None]) -> None:
        self.whole_of = whole_of
        self.topics = Topics(FEDERATION)
        self.session = Session(host=broker.host, port=broker.port, client_id="aggregator")
        self.arriving: dict[str, list[bytes]] = {}
        self.updates: dict[str, bytes] = {}  # whole ones, by uid
        self.frames: list[tuple[str, int]] = []
        self.states: list[str] = []
        self.healths: list[DeviceHealth] = []
        self.wants: list[Want] = []
        self.offers: list[Offer] = []
        self.blobs: dict[str, FrameReader] = {}  # what is published when it is wanted

    def __enter__(self) -> Self:
        self.session.__enter__()
        self.session.subscribe(f"{self.topics.prefix}device/#")
        self.session.wait_connected(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def announce(self, manifest: Manifest) -> None:
        self.session.publish_retained(self.topics.round, encode(manifest)).wait()

    def send(self, blob: bytes) -> None:
        """Publish chunks of a blob when they are wanted, from now on."""
        reader = FrameReader(blob)
        self.blobs[reader.digest] = reader
        for want in self.wants:
            if want.digest == reader.digest:
                self._publish(want)

    def publish(self, blob: bytes, *indices: int) -> None:
        self._publish(Want(FrameReader(blob).digest, indices), FrameReader(blob))

    def _publish(self, want: Want, reader: FrameReader | None = None) -> None:
        for index, frame in (reader or self.blobs[want.digest]).frames(want.missing):
            self.session.publish(self.topics.blob(want.digest, index), frame).wait()

    def answer(self, uid: str, kind: Any, reason: str | None = None, missing: tuple[int, ...] = ()) -> None:
        self.session.publish(self.topics.ack("pi"), encode(Ack(uid, kind, reason, missing))).wait()

    def until(self, happened: Callable[[], object], within_s: float = WAIT_S) -> None:
        """Take in what comes until something has happened; fail when it does not."""
        give_up_s = time.monotonic() + within_s
        while not happened():
            try:
                event = self.session.events.get(timeout=0.05)
            except queue.Empty:
                assert time.monotonic() < give_up_s, f"states {self.states}, frames {self.frames}, wants {self.wants}"
                continue
            if isinstance(event, Message):
                self._take(event)

    def until_connected(self) -> None:
        give_up_s = time.monotonic() + WAIT_S
        while not isinstance(self.session.events.get(timeout=max(0.0, give_up_s - time.monotonic())), Connected):
            pass

    def _take(self, message: Message) -> None:
        match self.topics.parse(message.topic):
            case DeviceTopic(_, "state"):
                self.states.append(decode(DeviceState, message.payload, where="state").state)
            case DeviceTopic(_, "health"):
                self.healths.append(decode(DeviceHealth, message.payload, where="health"))
            case DeviceTopic(_, "want"):
                want = decode(Want, message.payload, where="want")
                self.wants.append(want)
                if want.digest in self.blobs:
                    self._publish(want)
            case DeviceTopic(_, "offer"):
                offer = decode(Offer, message.payload, where="offer")
                self.offers.append(offer)
                if offer.uid not in self.updates:
                    self.answer(offer.uid, "resend", missing=tuple(range(offer.chunks)))
            case UpdateTopic(_, uid, index):
                self.frames.append((uid, index))
                self.arriving.setdefault(uid, []).append(message.payload)
                whole = self.whole_of(self.arriving[uid])
                if whole is not None:
                    self.updates[uid] = whole

    def forget_updates(self) -> None:
        self.offers.clear()
        self.arriving.clear()
        self.updates.clear()
        self.frames.clear()


@pytest.fixture
def aggregator(broker: EmbeddedBroker, whole_of: Callable[..., bytes | None]) -> Iterator[ScriptedAggregator]:
    with ScriptedAggregator(broker, whole_of) as scripted:
        yield scripted


@pytest.fixture
def plan_round(make_manifest: Callable[..., Manifest], wide: Network, wide_table: bytes) -> Callable[..., Manifest]:
    """Make the manifest of a round that begins now."""

    def make(
        number: int = 1,
        lasts_s: float = 60.0,
        model: bytes | None = None,
        table: bytes | None = None,
        **overrides: Any,
    ) -> Manifest:
        now_s = time.time()
        fields: dict[str, Any] = {"train_until_s": now_s + lasts_s, "deadline_s": now_s + lasts_s + 5.0}
        blobs = {"model": wide.to_bytes() if model is None else model, "table": wide_table if table is None else table}
        return make_manifest(number, **blobs | fields | overrides)

    return make


class TwoCores:
    def sample(self) -> Availability:
        return Availability(2.0, 1e9)

    def quiet_cpus(self) -> tuple[int, ...]:
        return ()


class Device:
    """A daemon in a thread."""

    def __init__(self, port: int, state: Path, dataset: Dataset, board: Board | None = None) -> None:
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self.state = state
        self.told: list[str] = []
        self.daemon = DeviceDaemon(
            federation=FEDERATION,
            device="pi",
            dataset=dataset,
            board=RealBoard(TwoCores()) if board is None else board,  # type: ignore[arg-type]
            state=state,
            version="test",
            broker={"host": "127.0.0.1", "port": port},
            log_steps=True,
            tell=self.told.append,
        )
        self._thread = threading.Thread(target=self._run, name="device under test")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.daemon.run(self.stop)
        except BaseException as failure:  # noqa: BLE001 - handed to the test
            self.failure = failure

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def spooled(self) -> list[str]:
        return sorted(path.name for path in (self.state / "spool").glob("*"))

    def end(self) -> None:
        self.stop.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def start_device(broker: EmbeddedBroker, tmp_path: Path, dataset: Dataset) -> Iterator[Callable[..., Device]]:
    """Start devices; each is ended after the test, and must not have failed unless the test has looked."""
    started: list[Device] = []

    def start(port: int = broker.port, state: Path = tmp_path / "state", board: Board | None = None) -> Device:
        started.append(Device(port, state, dataset, board))
        return started[-1]

    yield start
    for device in started:
        device.end()
        assert device.failure is None


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "FETCH_PATIENCE_S", 0.2)
    monkeypatch.setattr(rounds, "ACK_PATIENCE_S", 0.3)


def read(aggregator: ScriptedAggregator, uid: str, network: Network) -> Update:
    return decode_update(aggregator.updates[uid], network.plan)


def slow_board() -> TraceBoard:
    """A board whose first mini-batch would take for ever."""
    return TraceBoard(Trace((0.0,), (1e-6,)), core_speed=1.0, stop=threading.Event())


def only_uid(aggregator: ScriptedAggregator) -> str:
    (uid,) = aggregator.updates
    return uid


def test_a_round_goes_from_the_manifest_to_an_empty_spool(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
) -> None:
    device = start_device()
    aggregator.until(lambda: "idle" in aggregator.states)
    aggregator.announce(plan_round(training={"statistics_images": 16}))
    aggregator.send(wide.to_bytes())
    aggregator.send(wide_table)
    aggregator.until(lambda: aggregator.updates)
    uid = only_uid(aggregator)
    header = read(aggregator, uid, wide).header
    assert (header.device, header.round, header.images, header.statistics_images) == ("pi", 1, 80, 16)
    assert [name for name in device.spooled if uid in name]
    aggregator.answer(uid, "durable")
    aggregator.until(lambda: aggregator.states[-1] == "idle")
    assert device.spooled == []
    assert aggregator.states == ["starting", "idle", "training", "uploading", "idle"]
    assert len((device.state / "steps.csv").read_text().splitlines()) == 11
    aggregator.until(lambda: aggregator.healths and aggregator.healths[-1].spool == 0)
    device.end()
    aggregator.until(lambda: aggregator.states[-1] == "offline")


@pytest.mark.usefixtures("_impatient")
def test_chunks_that_do_not_come_are_asked_for(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
) -> None:
    manifest = plan_round()
    aggregator.announce(manifest)
    start_device()
    aggregator.until(lambda: Want(manifest.model.digest, (0, 1)) in aggregator.wants)
    aggregator.until(lambda: Want(manifest.table.digest, (0,)) in aggregator.wants)
    aggregator.publish(wide.to_bytes(), 1)
    aggregator.publish(wide_table, 0)
    aggregator.until(lambda: Want(manifest.model.digest, (0,)) in aggregator.wants)
    aggregator.publish(wide.to_bytes(), 0)
    aggregator.until(lambda: aggregator.updates)


def run_one_round(aggregator: ScriptedAggregator, manifest: Manifest, *blobs: bytes) -> str:
    """Have a round trained, and return its update's uid."""
    aggregator.announce(manifest)
    for blob in blobs:
        aggregator.send(blob)
    before = set(aggregator.updates)
    aggregator.until(lambda: set(aggregator.updates) - before)
    (uid,) = set(aggregator.updates) - before
    return uid


@pytest.fixture
def first_update(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
) -> tuple[Device, str]:
    """Start a device and have it train round 1; return it and its update's uid, which has not been answered."""
    device = start_device()
    aggregator.until(lambda: "idle" in aggregator.states)
    return device, run_one_round(aggregator, plan_round(), wide.to_bytes(), wide_table)


def test_a_refused_update_is_forgotten(
    aggregator: ScriptedAggregator, first_update: tuple[Device, str], caplog: pytest.LogCaptureFixture
) -> None:
    device, uid = first_update
    aggregator.answer(uid, "refused", "late: round 1 is closed")
    aggregator.until(lambda: aggregator.states[-1] == "idle")
    assert device.spooled == []
    assert "late: round 1 is closed" in caplog.text
    aggregator.answer(uid, "refused", "again")  # as every chunk of it is answered

    def last_reason() -> str | None:
        answer = ask(device.state)
        assert answer is not None
        assert isinstance(answer.status, DeviceStatus)
        return None if answer.status.last_answer is None else answer.status.last_answer.reason

    aggregator.until(lambda: last_reason() == "again")
    assert "again" not in caplog.text


def test_the_chunks_that_are_named_are_sent_again_and_the_update_offered_when_none_is(
    aggregator: ScriptedAggregator, first_update: tuple[Device, str]
) -> None:
    _, uid = first_update
    assert aggregator.frames == [(uid, 0), (uid, 1)]
    aggregator.answer(uid, "resend", missing=(1,))
    aggregator.until(lambda: len(aggregator.frames) == 3)
    assert aggregator.frames[2:] == [(uid, 1)]
    assert len(aggregator.offers) == 1
    aggregator.answer(uid, "resend")
    aggregator.until(lambda: len(aggregator.offers) == 2)
    assert aggregator.offers[0] == aggregator.offers[1]


@pytest.mark.usefixtures("_impatient")
def test_an_answer_that_is_lost_is_asked_for_by_offering_again(
    aggregator: ScriptedAggregator, first_update: tuple[Device, str]
) -> None:
    device, uid = first_update
    aggregator.until(lambda: len(aggregator.offers) >= 3)
    assert aggregator.frames == [(uid, 0), (uid, 1)]
    aggregator.answer(uid, "durable")
    aggregator.until(lambda: aggregator.states[-1] == "idle")
    assert device.spooled == []


def test_a_new_round_is_heard_and_trained_while_an_update_is_on_its_way(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []

    class FirstIsStuck(upload.Upload):
        def __init__(self, uid: str, *arguments: Any) -> None:
            super().__init__(uid, *arguments)
            begun.append(uid)

        def advance(self) -> bool:
            return super().advance() if self.uid != begun[0] else False

    monkeypatch.setattr(sending, "Upload", FirstIsStuck)
    start_device()
    aggregator.until(lambda: "idle" in aggregator.states)
    aggregator.announce(plan_round(1))
    aggregator.send(wide.to_bytes())
    aggregator.send(wide_table)
    aggregator.until(lambda: begun)
    heard = len(aggregator.healths)
    aggregator.until(lambda: len(aggregator.healths) > heard + 1)
    uid = run_one_round(aggregator, plan_round(2))
    assert read(aggregator, uid, wide).header.round == 2
    assert uid != begun[0]


def test_a_new_round_ends_the_training_of_the_last_even_on_a_board_without_cores(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
) -> None:
    start_device(board=slow_board())
    aggregator.until(lambda: "idle" in aggregator.states)
    aggregator.announce(plan_round(1, lasts_s=3600.0))
    aggregator.send(wide.to_bytes())
    aggregator.send(wide_table)
    aggregator.until(lambda: aggregator.states[-1] == "training")
    uid = run_one_round(aggregator, plan_round(2, lasts_s=1.0))
    header = read(aggregator, uid, wide).header
    assert (header.round, header.mini_batches) == (2, 0)


def test_a_device_that_is_stopped_while_it_trains_ends_soon_and_leaves_nothing_half_done(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
) -> None:
    device = start_device(board=slow_board())
    aggregator.until(lambda: "idle" in aggregator.states)
    aggregator.announce(plan_round(1, lasts_s=3600.0))
    aggregator.send(wide.to_bytes())
    aggregator.send(wide_table)
    aggregator.until(lambda: aggregator.states[-1] == "training")
    assert (device.state / "crashes.json").exists()
    device.daemon.note_end()  # cut off from here on, it would not have crashed
    assert not (device.state / "crashes.json").exists()
    began_s = time.monotonic()
    device.end()
    assert time.monotonic() - began_s < 2.0
    aggregator.until(lambda: aggregator.states[-1] == "offline")
    assert sorted(path.name for path in device.state.iterdir()) == ["blobs", "lock", "session", "spool", "steps.csv"]
    assert device.spooled == []


def test_a_second_device_on_the_same_state_folder_is_refused(
    aggregator: ScriptedAggregator, start_device: Callable[..., Device]
) -> None:
    device = start_device()
    aggregator.until(lambda: "idle" in aggregator.states)
    second = start_device()
    second.end()
    assert isinstance(second.failure, StateError)
    assert "in use by another" in str(second.failure)
    second.failure = None
    assert device.alive


def test_a_device_without_images_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2"):
        Device(1, tmp_path, dataset.take([0]))


def test_a_broker_that_comes_later_is_waited_for(
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
    broker: EmbeddedBroker,
    whole_of: Callable[..., bytes | None],
) -> None:
    with EmbeddedBroker() as other:
        port = other.port
    start_device(port=port)
    with EmbeddedBroker(port=port) as late, ScriptedAggregator(late, whole_of) as aggregator:
        aggregator.until(lambda: "idle" in aggregator.states)
        run_one_round(aggregator, plan_round(), wide.to_bytes(), wide_table)


def test_a_broker_that_restarts_in_the_middle_of_a_round_costs_nothing(
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
    broker: EmbeddedBroker,
    dataset: Dataset,
    whole_of: Callable[..., bytes | None],
) -> None:
    # Slow enough that the broker is away while the device trains.
    board = TraceBoard(Trace((0.0,), (1e-6,)), core_speed=1.0, stop=threading.Event())
    with contextlib.ExitStack() as first:
        running = first.enter_context(EmbeddedBroker())
        device = start_device(port=running.port, board=board)
        with ScriptedAggregator(running, whole_of) as aggregator:
            aggregator.until(lambda: "idle" in aggregator.states)
            aggregator.announce(plan_round(lasts_s=3.0))
            aggregator.send(wide.to_bytes())
            aggregator.send(wide_table)
            aggregator.until(lambda: aggregator.states[-1] == "training")
            first.close()
            aggregator.states.clear()
            with EmbeddedBroker(port=running.port):
                aggregator.until(lambda: aggregator.updates)
                uid = only_uid(aggregator)
                assert read(aggregator, uid, wide).header.round == 1
                aggregator.answer(uid, "durable")
                aggregator.until(lambda: aggregator.states and aggregator.states[-1] == "idle")
                assert device.spooled == []
                device.end()


def hostile_rounds(
    good: Manifest, wide: Network, wide_table: bytes, other: Network
) -> list[tuple[str | None, bytes, list[bytes]]]:
    """Return what a device should say about a round, the round's manifest as bytes, and the blobs that go with it."""

    def changed(**fields: Any) -> bytes:
        return msgspec.json.encode(msgspec.structs.replace(good, **fields))

    other_table = uniform_table(other, batch=8, rows=2).to_bytes()
    garbage = b"\x08" + b"\0" * 7 + b"no model"
    model = wide.to_bytes()
    overflowing = Network(
        wide.plan, wide.weights | {"head.weight": np.full_like(wide.weights["head.weight"], 3e38)}
    ).to_bytes()
    never_comes = BlobReference("e" * 64, 2**30, 4096)
    not_its_digest = BlobReference("d" * 64, len(model), 2)
    return [
        ("JSON is malformed", b"\xff\0", []),
        ("unknown field `run`", msgspec.json.encode(good)[:-1] + b',"run":"rm"}', []),
        ("at most 16777216 are taken", changed(table=BlobReference("f" * 64, 2**30, 4096)), []),
        (None, changed(model=never_comes), [wide_table]),
        (None, changed(model=not_its_digest), [model, wide_table]),
        ("the round's model: the header is not JSON", changed(model=reference(garbage)), [garbage, wide_table]),
        ("not a table of dropout vectors", changed(table=reference(garbage)), [model, garbage]),
        ("the table belongs to the network", changed(table=reference(other_table)), [model, other_table]),
        ("unknown draw policy 'sorted'", changed(draw="sorted"), [model, wide_table]),
        ("training diverged", changed(model=reference(overflowing)), [overflowing, wide_table]),
        ("its time for training ended", changed(train_until_s=1.0, deadline_s=2.0), [model, wide_table]),
        ("not a table of dropout vectors", changed(table=reference(model)), [model]),
    ]


def reference(blob: bytes) -> BlobReference:
    return BlobReference(hashlib.sha256(blob).hexdigest(), len(blob), chunk_count(len(blob)))


def test_hostile_and_broken_rounds_leave_a_device_alive(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
    network: Network,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = start_device()
    aggregator.until(lambda: "idle" in aggregator.states)
    for number, (words, payload, blobs) in enumerate(hostile_rounds(plan_round(1), wide, wide_table, network), 2):
        caplog.clear()
        # Each is a round of its own, as far as it can be read.
        again = payload.replace(b'"number":1', b'"number":%d' % number)
        aggregator.session.publish(aggregator.topics.round, again).wait()
        for blob in blobs:
            aggregator.send(blob)
        if words is not None:
            aggregator.until(lambda words=words: words in caplog.text)  # type: ignore[misc]
        assert device.alive
        assert not [record for record in caplog.records if record.exc_info]
    # A sound round is trained as ever.
    aggregator.forget_updates()
    aggregator.announce(plan_round(100))
    aggregator.send(wide.to_bytes())
    aggregator.send(wide_table)

    def updated() -> bool:
        return any(read(aggregator, uid, wide).header.round == 100 for uid in aggregator.updates)

    aggregator.until(updated)


def test_a_panic_in_a_library_costs_the_round_and_nothing_else(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Panic(BaseException):
        """As libraries written in Rust raise it."""

    def panic(**_: Any) -> None:
        raise Panic("index out of bounds")

    device = start_device()
    aggregator.until(lambda: "idle" in aggregator.states)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "train_round", panic)
        aggregator.announce(plan_round(1))
        aggregator.send(wide.to_bytes())
        aggregator.send(wide_table)
        aggregator.until(lambda: "no update: Panic: index out of bounds" in caplog.text)
    uid = run_one_round(aggregator, plan_round(2))
    assert read(aggregator, uid, wide).header.round == 2
    assert device.alive


def test_a_device_in_safe_mode_sends_what_it_has_and_trains_again_once_the_owner_says_so(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    first_update: tuple[Device, str],
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
) -> None:
    device, uid = first_update
    device.end()
    (device.state / "crashes.json").write_text(json.dumps({"running": True, "crashes_s": [time.time()] * 2}))
    aggregator.until(lambda: aggregator.states[-1] == "offline")
    aggregator.forget_updates()

    device = start_device()

    aggregator.until(lambda: uid in aggregator.updates)
    aggregator.until(lambda: aggregator.states[-1] == "degraded")
    aggregator.answer(uid, "durable")
    aggregator.until(lambda: device.spooled == [])
    aggregator.wants.clear()
    aggregator.blobs.clear()
    model = Network.initialise(wide.plan, seed=2).to_bytes()
    aggregator.announce(plan_round(2, model=model))
    heard = len(aggregator.healths)
    aggregator.until(lambda: len(aggregator.healths) > heard + 2)
    assert aggregator.states[-1] == "degraded"
    assert not aggregator.wants
    assert device.told[-1].startswith("degraded: crashed 3 times within 10 min; trains again in 30 min, or once")
    (device.state / "crashes.json").unlink()
    aggregator.until(lambda: aggregator.wants)  # the round that was announced meanwhile
    aggregator.send(model)
    aggregator.send(wide_table)
    aggregator.until(lambda: len(aggregator.updates) == 2)


def test_a_device_tells_what_goes_on(first_update: tuple[Device, str], aggregator: ScriptedAggregator) -> None:
    device, uid = first_update
    aggregator.answer(uid, "durable")
    aggregator.until(lambda: device.told[-1] == "idle, round 1")
    told = [status for status, _ in itertools.groupby(device.told)]
    assert told[0] == "idle; no connection to the broker"
    assert [status for status in told if "connection" not in status] == [
        "idle", "fetching, round 1", "training, round 1", "uploading, round 1", "idle, round 1"
    ]  # fmt: skip


# -- processes that are killed ---------------------------------------------------------------------------------------

PROGRAM = """
import signal, sys, threading
from pathlib import Path
import numpy as np
from distreal_edge.data import Dataset
from distreal_edge.device import DeviceDaemon, Trace, TraceBoard
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
shape = (int(sys.argv[4]), *map(int, sys.argv[5].split("x")))
images = np.random.default_rng(7).integers(0, 255, shape).astype(np.uint8)
dataset = Dataset(images, np.arange(len(images)) % 3, 3, name="noise")
board = TraceBoard(Trace((0.0,), (float(sys.argv[3]),)), core_speed=1.0, stop=stop)
DeviceDaemon(federation="fed", device="pi", dataset=dataset, board=board, state=Path(sys.argv[2]), version="test",
             broker={"host": "127.0.0.1", "port": int(sys.argv[1])}).run(stop)
"""


@contextlib.contextmanager
def device_process(
    broker: EmbeddedBroker, state: Path, cores: float = 4.0, images: int = 40, shape: str = "1x8x8"
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", PROGRAM, str(broker.port), str(state), str(cores), str(images), shape]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.chaos
def test_an_update_survives_kill_9_and_is_sent_again_under_the_same_uid(
    aggregator: ScriptedAggregator,
    broker: EmbeddedBroker,
    tmp_path: Path,
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
) -> None:
    with device_process(broker, tmp_path / "state") as process:
        aggregator.until(lambda: "idle" in aggregator.states)
        uid = run_one_round(aggregator, plan_round(), wide.to_bytes(), wide_table)
        process.kill()
        process.wait(WAIT_S)
    sent = aggregator.updates[uid]
    aggregator.until(lambda: aggregator.states[-1] == "offline")
    aggregator.forget_updates()
    aggregator.states.clear()
    spool = tmp_path / "state" / "spool"
    (spool / "r0000000002-0123456789abcdef-half.update.unfinished").write_bytes(b"half")
    with device_process(broker, tmp_path / "state") as process:
        aggregator.until(lambda: aggregator.updates)
        assert aggregator.updates == {uid: sent}
        # The round is still announced, and must not be trained a second time.
        aggregator.send(wide.to_bytes())
        aggregator.send(wide_table)
        aggregator.answer(uid, "durable")
        aggregator.until(lambda: aggregator.states[-1] == "idle")
        assert list(spool.iterdir()) == []
        assert "training" not in aggregator.states
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


@pytest.mark.chaos
def test_sigterm_in_the_middle_of_a_mini_batch_ends_the_process_cleanly(
    aggregator: ScriptedAggregator,
    broker: EmbeddedBroker,
    tmp_path: Path,
    plan_round: Callable[..., Manifest],
    wide: Network,
    wide_table: bytes,
) -> None:
    with device_process(broker, tmp_path / "state", cores=1e-6) as process:
        aggregator.until(lambda: "idle" in aggregator.states)
        aggregator.announce(plan_round(lasts_s=3600.0))
        aggregator.send(wide.to_bytes())
        aggregator.send(wide_table)
        aggregator.until(lambda: aggregator.states[-1] == "training")
        process.send_signal(signal.SIGTERM)
        aggregator.until(lambda: aggregator.states[-1] == "offline", within_s=2.0)
        assert process.wait(WAIT_S) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["blobs", "lock", "session", "spool"]
    # What was trained may have become an update by then; a half-written one has not.
    assert all(path.suffix == ".update" for path in (tmp_path / "state" / "spool").iterdir())


@pytest.mark.slow
@pytest.mark.chaos
def test_sigterm_while_native_code_computes_does_not_crash_the_process(
    aggregator: ScriptedAggregator, broker: EmbeddedBroker, tmp_path: Path, plan_round: Callable[..., Manifest]
) -> None:
    model = resnet20(classes=3).to_bytes()
    table = uniform_table(Network.from_bytes(model), batch=128, rows=1, cheapest=1.0).to_bytes()
    with device_process(broker, tmp_path / "state", images=128, shape="3x32x32") as process:
        aggregator.until(lambda: "idle" in aggregator.states)
        aggregator.announce(plan_round(model=model, table=table, training={"batch": 128}))
        aggregator.send(model)
        aggregator.send(table)
        aggregator.until(lambda: aggregator.states[-1] == "training")
        process.send_signal(signal.SIGTERM)
        # It takes its leave at once; the process ends with the mini-batch at hand.
        aggregator.until(lambda: aggregator.states[-1] == "offline", within_s=3.0)
        assert process.wait(60.0) == 0


def test_a_device_whose_aggregator_speaks_another_version_ends(
    aggregator: ScriptedAggregator,
    broker: EmbeddedBroker,
    tmp_path: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(belonging, "PATIENCE_S", 0.1)
    state = json.dumps({"state": "online", "federation": FEDERATION, "protocol": 2}).encode()
    aggregator.session.publish(f"distreal/2/{FEDERATION}/aggregator/state", state, retain=True).wait()
    device = Device(broker.port, tmp_path / "state", dataset)
    device._thread.join(WAIT_S)
    assert isinstance(device.failure, TransportError)
    assert "speaks version 2 of the protocol, this program version 1" in str(device.failure)


def test_the_will_of_an_older_connection_does_not_hide_a_device(
    aggregator: ScriptedAggregator, start_device: Callable[..., Device]
) -> None:
    start_device()
    aggregator.until(lambda: aggregator.states[-1:] == ["idle"])
    will = encode(DeviceState("offline", 1, 40, "test"))
    aggregator.session.publish_retained(aggregator.topics.device_state("pi"), will).wait()
    aggregator.until(lambda: aggregator.states[-2:] == ["offline", "idle"])


def test_a_round_that_opens_late_is_told_of_once_and_what_the_broker_kept_is_not(
    aggregator: ScriptedAggregator,
    start_device: Callable[..., Device],
    plan_round: Callable[..., Manifest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    aggregator.announce(plan_round(1, train_until_s=1.0, deadline_s=2.0))
    start_device()
    aggregator.until(lambda: "idle" in aggregator.states)
    late = plan_round(2, train_until_s=1.0, deadline_s=2.0)
    aggregator.announce(late)
    aggregator.announce(late)
    aggregator.announce(plan_round(3, train_until_s=1.0, deadline_s=2.0))
    aggregator.until(lambda: "round 3: its time for training ended" in caplog.text)
    assert caplog.text.count("its time for training ended") == 2
    assert "round 1: its time for training ended" not in caplog.text


def test_devices_of_one_name_in_two_federations_and_of_long_names_have_ids_of_their_own() -> None:
    pairs = [("x", "pi"), ("y", "pi"), ("x", "q" * 64), ("x", "q" * 63 + "r"), ("x-p", "i"), ("f" * 64, "pi")]
    ids = [daemon_module.client_id_of(federation=federation, device=device) for federation, device in pairs]
    assert len(set(ids)) == len(pairs)
    for client_id in ids:
        check_name(client_id, "client id")
    assert ids[0] == daemon_module.client_id_of(federation="x", device="pi")
