"""A round is averaged, evaluated and stored beside the loop, which goes on listening."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.aggregator import Aggregator, AverageRule, HeldOut, Ledger, Open, RoundSettings, Store, finishing
from distreal_edge.aggregator.finishing import Finishing
from distreal_edge.errors import StateError
from distreal_edge.search import uniform_table
from distreal_edge.transport import AggregatorHealth, Message, Topics, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from distreal_edge.aggregator import Lesson
    from distreal_edge.network import Network
    from distreal_edge.transport import EmbeddedBroker, Manifest

WAIT_S = 20.0
OPENED = Open(1, ("pi-1", "pi-2", "pi-3"), 1000.0, 1008.0, 1010.0, measure_only=False)


class Gate:
    """A function that waits until it is let through."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.reached.set()
        assert self.open.wait(WAIT_S)
        return self._function(*arguments, **keywords)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Hold up every evaluation."""
    made = Gate(finishing.judge_round)
    monkeypatch.setattr(finishing, "judge_round", made)
    yield made
    made.open.set()


@pytest.fixture
def begun(tmp_path: Path, network: Network, manifest_of: Callable[..., Manifest]) -> Callable[[], Finishing]:
    """Begin to close a round that nobody has answered."""

    def begin() -> Finishing:
        store, manifest = Store(tmp_path), manifest_of(network)
        made = Finishing(OPENED, manifest, network, (), store, AverageRule("touch"), HeldOut(), 1010.5)
        made.start()
        return made

    return begin


def test_what_was_made_is_on_the_disk_when_it_is_told(begun: Callable[[], Finishing], tmp_path: Path) -> None:
    made = begun().result(WAIT_S)
    assert made is not None
    assert (made.closed.record.round, made.closed.record.closed_s) == (1, 1010.5)
    assert Store(tmp_path).load_model(1) == made.closed.model
    assert made.files == {"round-0001.safetensors": (1, made.closed.record.model)}
    assert made.metrics["open_s"] == 10.5
    assert made.metrics["answered"] == 0.0


def test_abandoned_it_writes_nothing_any_more(begun: Callable[[], Finishing], gate: Gate, tmp_path: Path) -> None:
    closing = begun()
    assert gate.reached.wait(WAIT_S)
    assert closing.result() is None
    assert closing.phase == "evaluating"
    closing.abandon()
    gate.open.set()
    assert closing.result(WAIT_S) is None
    assert Store(tmp_path).models() == []


def test_what_goes_wrong_in_it_is_raised_to_whoever_asks(
    begun: Callable[[], Finishing], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StateError("the disk is full")

    monkeypatch.setattr(finishing, "keep_files", full)
    with pytest.raises(StateError, match="the disk is full"):
        begun().result(WAIT_S)


def test_while_a_round_is_evaluated_the_aggregator_answers_and_tells_what_it_does(
    broker: EmbeddedBroker, device_at: Any, network: Network, lesson: Lesson, gate: Gate, tmp_path: Path
) -> None:
    aggregator = Aggregator(
        federation="test", network=network, table=uniform_table(network, rows=3), lesson=lesson,
        settings=RoundSettings(1, 60.0, 1.0, 2, None, 0, closing_measurement=True, quorum=0.5),
        state=tmp_path / "state", broker={"host": broker.host, "port": broker.port},
    )  # fmt: skip
    stop, ended = threading.Event(), threading.Event()

    def run() -> None:
        aggregator.run(stop)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        quick, slow = device_at(broker, "quick"), device_at(broker, "slow")
        for device in (quick, slow):
            device.say("idle")
        manifest = quick.manifest(1)
        quick.answer(manifest, statistics_images=32)  # half of the devices are enough
        assert gate.reached.wait(WAIT_S)
        # Nobody waits for the evaluation to be told that it comes too late.
        uid, data = slow.trained(slow.manifest(1))
        slow.offer(uid, data, manifest)
        assert slow.ack(uid, "refused").reason == "late: no round is open"
        health = Topics("test").aggregator_health
        slow.session.subscribe(health).wait(WAIT_S)
        told: list[AggregatorHealth] = []
        while len(told) < 2:
            event = slow.session.events.get(timeout=WAIT_S)
            if isinstance(event, Message) and event.topic == health and not event.retained:
                told.append(decode(AggregatorHealth, event.payload, where=health))
        assert {each.phase for each in told} == {"evaluating"}
        # Asked to stop, it does not wait either.
        stop.set()
        assert ended.wait(WAIT_S)
    finally:
        stop.set()
        gate.open.set()
        thread.join(WAIT_S)
    with Ledger(tmp_path / "state" / "ledger.sqlite") as ledger:
        opened = ledger.opened()
        assert opened is not None
        assert (opened.number, [update.device for update in ledger.updates(1)]) == (1, ["quick"])
        assert ledger.staleness() == {1: 1}
