"""Stop the aggregator at every single thing it writes or says, start it again, and compare with a run undisturbed."""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distreal_edge.aggregator import (
    Aggregator,
    Ledger,
    RoundSettings,
    Store,
    rounds,
    server,
    store,
)
from distreal_edge.device import encode_update
from distreal_edge.network import Network
from distreal_edge.search import uniform_table
from distreal_edge.transport import (
    Ack,
    Connected,
    Delivery,
    DeviceState,
    FrameReader,
    Manifest,
    Message,
    Offer,
    Topics,
    Want,
    decode,
    encode,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from distreal_edge.aggregator import Lesson

DEVICES = ("pi-1", "pi-2")
ROUNDS = 2


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


class Killed(BaseException):
    """The process ends here."""


class Fuse:
    """Ends the process just after the n-th thing it does, which is just before the next: between them nothing lasts."""

    def __init__(self) -> None:
        self.left = 10**9
        self.done: list[str] = []

    def around(self, what: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def burning(*arguments: Any, **keywords: Any) -> Any:
            result = action(*arguments, **keywords)
            # Health depends on the time, and nothing depends on it.
            if not any(isinstance(each, str) and each.endswith("/health") for each in arguments):
                self._burn(what)
            return result

        return burning

    def _burn(self, what: str) -> None:
        self.done.append(what)
        self.left -= 1
        if self.left == 0:
            raise Killed(what)


class Unsynced(sqlite3.Connection):
    """A database that does not wait for the disk: no power is cut here, and there are many starts."""

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return super().execute(statement.replace("synchronous = EXTRA", "synchronous = OFF"), *values)


class Farm:
    """Devices, and the broker between them and the aggregator, in this very thread. They outlive the aggregator."""

    def __init__(self, maker_of: Callable[..., Any], whole_of: Callable[..., bytes | None]) -> None:
        self.maker_of = maker_of
        self.whole_of = whole_of
        self.topics = Topics("test")
        self.manifest: Manifest | None = None
        self.models: dict[str, list[bytes]] = {}
        self.spool: dict[str, tuple[str, bytes]] = {}  # by device, the update that was not acknowledged
        self.answered: dict[str, int] = {}
        self.durable: list[str] = []
        self.events: queue.Queue[Any] = queue.Queue()
        self.connected = True
        self.failure = None

    def session(self, **_arguments: Any) -> Farm:
        """Stand in for the session's class."""
        return self

    def __enter__(self) -> Self:
        self.events = queue.Queue()
        self.events.put(Connected(session_present=False))
        for device in DEVICES:
            state = encode(DeviceState("idle", 1, 100, "test"))
            self.events.put(Message(self.topics.device_state(device), state, retained=True))
        self._deliver()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def subscribe(self, *_filters: str) -> None:
        pass

    def publish(self, topic: str, payload: bytes) -> Delivery:
        delivery = Delivery(topic)
        delivery.settle()
        if "/blob/" in topic:
            self.models.setdefault(topic.split("/")[4], []).append(payload)
            self._train()
            return delivery
        device = topic.split("/")[4]
        ack = decode(Ack, payload, where=topic)
        if ack.kind == "resend":
            # What is at the device's front may be another update by now.
            uid, data = self.spool[device]
            assert ack.uid == uid
            frames = split(data)
            for index in ack.missing:
                self.events.put(Message(self.topics.update(device, uid, index), frames[index]))
            if not ack.missing:
                self._deliver()
            return delivery
        assert ack.kind == "durable", ack
        if self.spool.get(device, ("", b""))[0] == ack.uid:
            del self.spool[device]
            self.durable.append(ack.uid)
        return delivery

    def publish_retained(self, topic: str, payload: bytes, *, qos: int = 1) -> Delivery:
        if topic == self.topics.round:
            self.manifest = decode(Manifest, payload, where=topic)
            self._train()
            self._deliver()
            want = encode(Want(self.manifest.model.digest, tuple(range(self.manifest.model.chunks))))
            if self.manifest.model.digest not in self.models:
                self.events.put(Message(self.topics.want(DEVICES[0]), want))
        delivery = Delivery(topic)
        delivery.settle()
        return delivery

    def _train(self) -> None:
        manifest = self.manifest
        if manifest is None or manifest.finished or manifest.model.digest not in self.models:
            return
        model = self.whole_of(self.models[manifest.model.digest])
        assert model is not None
        for number, device in enumerate(manifest.selected):
            if self.answered.get(device, 0) < manifest.number:
                self.answered[device] = manifest.number
                network = Network.from_bytes(model)
                maker = self.maker_of(network, 100 * manifest.number + number)
                uid = f"{device}-round-{manifest.number}"
                update = maker.update(
                    maker.log("ordered", 2), device=device, uid=uid, round=manifest.number,
                    model=manifest.model.digest, macs=0,
                )  # fmt: skip
                self.spool[device] = (uid, encode_update(update))
        self._deliver()

    def _deliver(self) -> None:
        for device, (uid, data) in self.spool.items():
            assert self.manifest is not None
            reader = FrameReader(data)
            model = self.manifest.model.digest
            offer = Offer(uid, int(uid.split("-")[-1]), model, reader.digest, reader.total_bytes, reader.count)
            self.events.put(Message(self.topics.offer(device), encode(offer)))


@pytest.fixture
def federation(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    network_of: Any,
    maker_of: Any,
    images_of: Any,
    lesson: Lesson,
    whole_of: Any,
) -> Callable[[Iterable[int]], tuple[Path, Farm, Fuse]]:
    """Run a federation to its end, with the aggregator killed at these steps, counted anew from every start."""
    network = network_of("residual")
    table = uniform_table(network, rows=3)
    fuse = Fuse()
    monkeypatch.setattr(rounds, "SETTLE_S", 0.0)
    monkeypatch.setattr(server, "_TICK_S", 0.01)
    # Only the order of writes matters here; that each is durable is durable.py's own test.
    monkeypatch.setattr(
        store, "write_durably", fuse.around("a file is written", lambda path, data: path.write_bytes(data))
    )
    monkeypatch.setattr(store, "append_durably", fuse.around("a line is written", append))
    monkeypatch.setattr(
        store, "rename_durably", fuse.around("a file is renamed", lambda path, name: path.replace(name))
    )
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Unsynced))
    for method in ("claim", "open_round", "store_update", "close_round"):
        monkeypatch.setattr(Ledger, method, fuse.around(method, getattr(Ledger, method)))
    monkeypatch.setattr(Store, "drop_updates", fuse.around("drop_updates", Store.drop_updates))
    for method in ("publish", "publish_retained"):
        monkeypatch.setattr(Farm, method, fuse.around(method, getattr(Farm, method)))
    counter = iter(range(10**6))

    def run(kills: Iterable[int]) -> tuple[Path, Farm, Fuse]:
        folder = tmp_path / f"run-{next(counter)}"
        farm = Farm(maker_of, whole_of)
        monkeypatch.setattr(server, "Session", farm.session)
        remaining = list(kills)
        fuse.done.clear()
        while True:
            fuse.left = remaining.pop(0) if remaining else 10**9
            aggregator = Aggregator(
                federation="test", network=network, table=table, state=folder, broker={}, lesson=lesson,
                settings=RoundSettings(ROUNDS, 60.0, 1.0, len(DEVICES), None, 0),
                calibration=images_of(10, 2),
            )  # fmt: skip
            try:
                assert aggregator.run(threading.Event())
            except Killed:
                continue
            return folder, farm, fuse

    return run


def outcome(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return every model's bytes, and the records without their times."""
    models = {
        path.name: path.read_bytes() for path in [*sorted((folder / "models").iterdir()), folder / "latest.safetensors"]
    }
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        del record["started_s"], record["closed_s"]
    return models, records


def check(folder: Path, farm: Farm) -> None:
    expected = [f"{device}-round-{number}" for number in range(1, ROUNDS + 1) for device in DEVICES]
    assert sorted(farm.durable) == sorted(expected)
    assert farm.spool == {}
    with Ledger(folder / "ledger.sqlite") as ledger:
        stored = [update.uid for number in range(1, ROUNDS + 1) for update in ledger.updates(number)]
        assert sorted(stored) == sorted(expected)
        assert ledger.refusals() == {}
        assert ledger.opened() is None
        assert ledger.rounds_done() == ROUNDS
    assert list((folder / "updates").iterdir()) == []
    assert farm.manifest is not None
    assert farm.manifest.finished
    Network.load(folder / "latest.safetensors")


def test_killed_once_at_any_step_the_result_is_the_same_to_the_last_bit(
    federation: Callable[[Iterable[int]], tuple[Path, Farm, Fuse]],
) -> None:
    folder, farm, fuse = federation([])
    check(folder, farm)
    undisturbed, steps = outcome(folder), len(fuse.done)
    assert len(undisturbed[0]) == ROUNDS + 2
    assert steps > 25
    for kill in range(1, steps + 1):
        folder, farm, fuse = federation([kill])
        assert fuse.left > 10**6, f"nothing was killed at step {kill}"
        check(folder, farm)
        assert outcome(folder) == undisturbed, f"killed after {fuse.done[kill - 1]} (step {kill})"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(1, 15), min_size=2, max_size=12))
def test_killed_again_and_again_the_result_is_the_same_to_the_last_bit(
    federation: Callable[[Iterable[int]], tuple[Path, Farm, Fuse]], kills: list[int]
) -> None:
    undisturbed = outcome(federation([])[0])
    folder, farm, _ = federation(kills)
    check(folder, farm)
    assert outcome(folder) == undisturbed
