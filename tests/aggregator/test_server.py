"""The aggregator over a real broker, with devices that play from a script. The network is tiny."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.aggregator import Aggregator, Ledger, RoundSettings, average_round, evaluate, with_statistics
from distreal_edge.device import decode_update, encode_update
from distreal_edge.engine import Engine
from distreal_edge.errors import ConfigError, DataError, StateError, TransportError
from distreal_edge.network import Network
from distreal_edge.search import uniform_table
from distreal_edge.transport import AggregatorHealth, EmbeddedBroker, Message, Session, Topics, decode, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from distreal_edge.aggregator import Lesson

WAIT_S = 20.0


class Running:
    """An aggregator in a thread of its own."""

    def __init__(self, aggregator: Aggregator) -> None:
        self.stop = threading.Event()
        self.complete: bool | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(aggregator,))
        self._thread.start()

    def _run(self, aggregator: Aggregator) -> None:
        try:
            self.complete = aggregator.run(self.stop)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def end(self) -> bool | None:
        """Wait for the aggregator to end by itself; return whether the training is complete."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the aggregator does not end"
        if self.error is not None:
            raise self.error
        return self.complete

    def stopped(self) -> bool | None:
        self.stop.set()
        return self.end()


@pytest.fixture
def aggregator_of(
    tmp_path: Path, lesson: Lesson, network_of: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Aggregator]:
    """Make an aggregator of two rounds of at most 20 seconds; the state folder stays the same from one to the next."""

    def make(
        broker: EmbeddedBroker, *, kind: str = "plain", rounds: dict[str, Any] | None = None, **changed: Any
    ) -> Aggregator:
        network = changed.pop("network", None) or network_of(kind)
        calibration = changed.get("calibration")
        known: dict[str, Any] = {
            "number": 2, "seconds": 20.0, "upload_seconds": 1.0, "least_devices": 1, "devices_per_round": None,
            "seed": 0, "closing_measurement": Aggregator.needs_closing_measurement(network, calibration),
        }  # fmt: skip
        return Aggregator(
            network=network, table=uniform_table(network, rows=3),
            settings=RoundSettings(**{**known, **(rounds or {})}), broker={"host": broker.host, "port": broker.port},
            **{"federation": "test", "state": tmp_path / "state", "lesson": lesson, **changed},
        )  # fmt: skip

    return make


@pytest.fixture
def serving(
    aggregator_of: Callable[..., Aggregator], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []
    monkeypatch.setattr("distreal_edge.aggregator.rounds.SETTLE_S", 0.2)

    def serve(*arguments: Any, **keywords: Any) -> Running:
        running.append(Running(aggregator_of(*arguments, **keywords)))
        return running[-1]

    yield serve
    for each in running:
        each.stop.set()
        each._thread.join(WAIT_S)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "state" / "rounds.jsonl").read_text().splitlines()]


def model(folder: Path, number: int) -> Network:
    return Network.load(folder / "state" / "models" / f"round-{number:04d}.safetensors")


def test_rounds_are_announced_averaged_scored_and_finished(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any, tmp_path: Path
) -> None:
    test, calibration = images_of(40, 1), images_of(70, 2)
    running = serving(broker, test=test, calibration=calibration, rounds={"least_devices": 2})
    devices = [device_at(broker, f"pi-{number}") for number in (1, 2)]
    for device in devices:
        device.say("idle")
    expected = None
    for number in (1, 2):
        updates = []
        for seed, device in enumerate(devices):
            manifest = device.manifest(number)
            assert manifest.selected == ("pi-1", "pi-2")
            assert manifest.training.statistics_images == 0
            uid, data = device.trained(manifest, seed=10 * number + seed)
            device.send(uid, data)
            device.ack(uid, "durable")
            updates.append(decode_update(data, model(tmp_path, 0).plan))
        received = model(tmp_path, number - 1)
        expected = average_round(received, updates, "touch").network
        if number == 1:
            devices[0].manifest(2)  # the first round is closed when the second one is announced
    last = devices[0].manifest(2, finished=True)
    assert last.selected == ()
    assert running.end() is True
    # Parameters as averaged, statistics as measured on the calibration images by somebody else, scores as counted.
    assert expected is not None
    statistics = Engine(expected).measure_statistics(np.array_split(calibration.images, 2))
    expected = with_statistics(expected, statistics)
    found, latest = model(tmp_path, 2), Network.load(tmp_path / "state" / "latest.safetensors")
    for name, tensor in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], tensor, rtol=1e-5, atol=1e-6)
    assert latest.to_bytes() == found.to_bytes()
    assert devices[0].blob(last.model) == found.to_bytes() if last.model.digest in devices[0].blobs else True
    first, second = records(tmp_path)
    assert (first["round"], second["round"]) == (1, 2)
    assert second["evaluated_round"] == 2
    assert second["answered"] == second["selected"] == ["pi-1", "pi-2"]
    assert second["evaluated_images"] == 40
    logits = Engine(found).predict(test.images)
    assert second["accuracy"] == np.mean(np.argmax(logits, axis=1) == test.labels)
    chosen = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = chosen[np.arange(40), test.labels] / chosen.sum(axis=1)
    assert second["loss"] == pytest.approx(-np.mean(np.log(shares)), rel=1e-5)


def test_devices_measure_the_statistics_when_the_aggregator_has_no_images_for_it(
    broker: EmbeddedBroker,
    serving: Any,
    device_at: Any,
    images_of: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    test = images_of(30, 1)
    running = serving(broker, test=test)
    device = device_at(broker)
    device.session.subscribe(device.topics.aggregator_health).wait(WAIT_S)
    device.say("idle")
    for number in (1, 2, 3):
        manifest = device.manifest(number)
        assert manifest.training.statistics_images == 32
        assert manifest.measure_only == (number == 3)
        device.answer(manifest, steps=0 if number == 3 else 2, seed=number, statistics_images=32)
    device.manifest(3, finished=True)
    assert running.end() is True
    # Two rounds train, and the one after them is named for what it is.
    assert {health.rounds for health in device.healths} == {2}
    assert "round 3, the closing measurement: 1 device (the only one here)" in caplog.text
    assert "finished after 2 rounds" in caplog.text
    found = records(tmp_path)
    # What devices measured belongs to the model that they received; the last round only measures.
    assert [record["evaluated_round"] for record in found] == [0, 1, 3]
    last, latest = model(tmp_path, 3), Network.load(tmp_path / "state" / "latest.safetensors")
    assert latest.to_bytes() == last.to_bytes()
    for name in last.plan.parameters:
        assert last.weights[name].tobytes() == model(tmp_path, 2).weights[name].tobytes()
    assert found[-1]["accuracy"] == evaluate(latest, test, 1).accuracy


def test_a_network_without_batch_norm_needs_no_statistics(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any, tmp_path: Path
) -> None:
    running = serving(broker, kind="depthwise", test=images_of(30, 1))
    device = device_at(broker)
    device.say("idle")
    for number in (1, 2):
        manifest = device.manifest(number)
        assert manifest.training.statistics_images == 0
        device.answer(manifest)
    assert running.end() is True
    assert [record["evaluated_round"] for record in records(tmp_path)] == [1, 2]
    assert Network.load(tmp_path / "state" / "latest.safetensors").to_bytes() == model(tmp_path, 2).to_bytes()


def test_an_aggregator_without_images_trains_all_the_same(
    broker: EmbeddedBroker, serving: Any, device_at: Any, tmp_path: Path
) -> None:
    running = serving(broker, rounds={"number": 1})
    device = device_at(broker)
    device.say("idle")
    for number in (1, 2):
        device.answer(device.manifest(number), steps=2 - number, statistics_images=32)
    assert running.end() is True
    assert [(record["accuracy"], record["evaluated_images"]) for record in records(tmp_path)] == [(None, 0)] * 2
    Network.load(tmp_path / "state" / "latest.safetensors")


def test_a_round_that_nobody_answers_closes_at_its_deadline_with_the_model_unchanged(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any, tmp_path: Path
) -> None:
    running = serving(broker, calibration=images_of(10), rounds={"number": 1, "seconds": 1.0, "upload_seconds": 0.2})
    device = device_at(broker)
    device.say("idle")
    deadline_s = device.manifest(1).deadline_s
    device.manifest(1, finished=True)
    assert time.time() >= deadline_s
    assert running.end() is True
    assert model(tmp_path, 1).to_bytes() == model(tmp_path, 0).to_bytes()
    (record,) = records(tmp_path)
    assert 0.0 <= record["closed_s"] - deadline_s < 1.0
    assert (record["answered"], record["images"], record["accuracy"]) == ([], 0, None)


def test_a_chunk_is_sent_once_for_all_who_ask_and_what_there_is_not_is_left_aside(
    broker: EmbeddedBroker, serving: Any, device_at: Any, network_of: Any
) -> None:
    serving(broker, kind="plain", network=network_of("plain"))
    devices = [device_at(broker, f"pi-{number}") for number in (1, 2)]
    devices[0].say("idle")
    manifest = devices[0].manifest(1)
    model_chunk, table_chunk = (manifest.model.digest, 0), (manifest.table.digest, 0)
    # Nothing is published that nobody wants; what two want is published once.
    for device in devices:
        device.want(*model_chunk)
    for device in devices:
        device.until(lambda device=device: model_chunk in device.chunks)
        assert device.chunks == [model_chunk]
        device.chunks.clear()
    devices[0].want("0" * 64, 0)  # no such blob
    devices[0].want(manifest.model.digest, 1, 4095)  # no such chunks
    devices[1].want(manifest.table.digest, 0)
    for device in devices:
        device.until(lambda device=device: table_chunk in device.chunks)
        assert device.chunks == [table_chunk]


def corrupted(kind: str, data: bytes) -> bytes:
    if kind == "cut off":
        return data[: len(data) // 2]
    if kind == "not an update":
        return b"\x00" * 400
    if kind == "huge header":
        return (2**40).to_bytes(8, "little") + data[8:]
    length = int.from_bytes(data[:8], "little")
    assert kind == "no json"
    return data[:8] + b"}" * length + data[8 + length :]


LIES: dict[str, dict[str, Any]] = {
    "identity": {"device": "pi-9"},
    "round": {"round": 2},
    "model": {"model": "0" * 64},
    "samples": {"macs": 2**62},
}


def test_lying_updates_are_refused_counted_and_change_nothing(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any, tmp_path: Path
) -> None:
    running = serving(broker, kind="depthwise", rounds={"number": 1})
    device = device_at(broker)
    device.say("idle")
    manifest = device.manifest(1)
    for reason, lie in LIES.items():
        uid, data = device.trained(manifest, **{"uid": f"lie-{reason}", **lie})
        device.send(uid, data)
        assert device.ack(uid, "refused").reason.startswith(f"{reason}: ")
    device.answer(manifest, steps=0)
    assert running.end() is True
    assert model(tmp_path, 1).to_bytes() == model(tmp_path, 0).to_bytes()
    with Ledger(tmp_path / "state" / "ledger.sqlite") as ledger:
        assert ledger.refusals() == dict.fromkeys(LIES, 1)
        assert len(ledger.updates(1)) == 1


def test_hostile_bytes_of_every_kind_are_refused_and_a_sound_update_still_counts(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any, tmp_path: Path
) -> None:
    running = serving(broker, calibration=images_of(10), rounds={"number": 1, "least_devices": 2})
    honest, hostile = device_at(broker, "pi-1"), device_at(broker, "pi-2")
    for device in (honest, hostile):
        device.say("idle")
    manifest = hostile.manifest(1)
    _, data = hostile.trained(manifest)
    expected: dict[str, str] = {
        "cut off": "form", "not an update": "form", "huge header": "form", "no json": "form",
    }  # fmt: skip
    for number, (kind, reason) in enumerate(expected.items()):
        hostile.send(f"bad-{number}", corrupted(kind, data))
        assert hostile.ack(f"bad-{number}", "refused").reason.startswith(f"{reason}: ")
    nan = decode_update(data, model(tmp_path, 0).plan)
    nan.changes["fc.bias"][0] = np.nan
    hostile.send("bad-nan", encode_update(nan))
    assert hostile.ack("bad-nan", "refused").reason.startswith("finite: ")
    for number, frame in enumerate((b"", b"DRCK", bytes(1000), split(data)[0][:-1])):
        hostile.offer(f"bad-frame-{number}", data, manifest)
        hostile.publish(f"bad-frame-{number}", 0, frame)
        assert hostile.ack(f"bad-frame-{number}", "refused").reason.startswith("chunk: ")
    for payload in (b"", b"{}", b"\xff\xfe", b'{"state": 1}', b"[" * 5000):
        for topic in (hostile.topics.device_state("pi-2"), hostile.topics.want("pi-2")):
            hostile.session.publish(topic, payload).wait(WAIT_S)
    uid = honest.answer(honest.manifest(1))
    hostile.answer(manifest, steps=0)
    assert running.end() is True
    with Ledger(tmp_path / "state" / "ledger.sqlite") as ledger:
        assert ledger.refusals() == {"form": 4, "finite": 1, "chunk": 4}
        assert uid in {update.uid for update in ledger.updates(1)}
    (record,) = records(tmp_path)
    assert record["answered"] == ["pi-1", "pi-2"]


def test_an_update_sent_again_is_acknowledged_again_and_counted_once_even_in_the_next_round(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any, tmp_path: Path
) -> None:
    running = serving(broker, calibration=images_of(10))
    device = device_at(broker)
    device.say("idle")
    uid, data = device.trained(device.manifest(1))
    for _ in range(2):
        device.acks.clear()
        device.send(uid, data)
        device.ack(uid, "durable")
    second = device.manifest(2)
    device.acks.clear()
    device.send(uid, data)
    device.ack(uid, "durable")
    # What was never acknowledged is late by now.
    late_uid, late = device.trained(second, round=1)
    device.send(late_uid, late)
    assert device.ack(late_uid, "refused").reason == "late: round 1 is closed"
    device.answer(second)
    assert running.end() is True
    assert [record["answered"] for record in records(tmp_path)] == [["pi-1"], ["pi-1"]]


def test_missing_chunks_of_an_update_are_asked_for(
    broker: EmbeddedBroker,
    serving: Any,
    device_at: Any,
    network_of: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distreal_edge.transport.chunks.CHUNK_BYTES", 600)
    running = serving(broker, kind="depthwise", rounds={"number": 1})
    device = device_at(broker)
    device.say("idle")
    uid, data = device.trained(device.manifest(1))
    assert len(split(data)) > 3
    device.send(uid, data, 1, 3)
    assert device.ack(uid, "resend").missing[:4] == (0, 1, 2, 3)
    device.acks.clear()
    device.offer(uid, data, device.manifests[-1])
    missing = device.ack(uid, "resend").missing
    assert missing == tuple(index for index in range(len(split(data))) if index not in {1, 3})[:8]
    device.send(uid, data, *(index for index in range(len(split(data))) if index not in {1, 3}))
    device.ack(uid, "durable")
    assert running.end() is True


def test_an_aggregator_that_was_stopped_continues_the_very_round(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"calibration": images_of(10), "rounds": {"number": 1, "least_devices": 2}}
    running = serving(broker, **arguments)
    devices = [device_at(broker, f"pi-{number}") for number in (1, 2)]
    for device in devices:
        device.say("idle")
    before = devices[1].manifest(1)
    answered = devices[0].answer(devices[0].manifest(1))
    assert running.stopped() is False
    devices[1].manifests.clear()
    devices[1].blobs.clear()
    again = serving(broker, **arguments)
    assert devices[1].manifest(1) == before
    uid = devices[1].answer(before)
    assert again.end() is True
    with Ledger(tmp_path / "state" / "ledger.sqlite") as ledger:
        assert {update.uid for update in ledger.updates(1)} == {answered, uid}
    assert len(records(tmp_path)) == 1


def test_a_device_that_announces_more_images_after_selection_gains_nothing(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any, maker_of: Any
) -> None:
    arguments: dict[str, Any] = {"calibration": images_of(10)}
    running = serving(broker, **arguments)
    device = device_at(broker)
    device.say("idle", 10)
    manifest = device.manifest(1)
    assert running.stopped() is False
    device.manifests.clear()
    serving(broker, **arguments)
    device.manifest(1)
    device.say("training", 10**9)
    maker = maker_of(Network.from_bytes(device.blob(manifest.model)))
    (subset, _), *_ = maker.log("ordered", 1)
    update = maker.update([(subset, 10 * 3 + 8 + 1)], model=manifest.model.digest)
    device.send(update.header.uid, encode_update(update))
    assert device.ack(update.header.uid, "refused").reason.startswith("samples: 39 images, more than the 38")


def test_the_end_is_told_again_after_a_restart(
    broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any
) -> None:
    arguments: dict[str, Any] = {"calibration": images_of(10), "rounds": {"number": 1}}
    running = serving(broker, **arguments)
    device = device_at(broker)
    device.say("idle")
    device.answer(device.manifest(1))
    device.manifest(1, finished=True)
    assert running.end() is True
    device.manifests.clear()
    assert serving(broker, **arguments).end() is True
    device.manifest(1, finished=True)


@pytest.mark.chaos
def test_a_broker_that_is_killed_in_mid_round_costs_no_update(
    serving: Any, device_at: Any, images_of: Any, tmp_path: Path
) -> None:
    with EmbeddedBroker() as first:
        running = serving(first, calibration=images_of(10), rounds={"number": 1, "least_devices": 2})
        devices = [device_at(first, f"pi-{number}") for number in (1, 2)]
        for device in devices:
            device.say("idle")
        kept = devices[0].answer(devices[0].manifest(1))
        uid, data = devices[1].trained(devices[1].manifest(1))
        port = first.port
    with EmbeddedBroker(port=port):
        devices[1].session.wait_connected(WAIT_S)
        _keep_sending(devices[1], uid, data)
        assert running.end() is True
    with Ledger(tmp_path / "state" / "ledger.sqlite") as ledger:
        assert {update.uid for update in ledger.updates(1)} == {kept, uid}
    assert len(records(tmp_path)) == 1


def _keep_sending(device: Any, uid: str, data: bytes) -> None:
    """Send until there is an answer, as a device does: the aggregator may be back later than the device."""
    until_s = time.monotonic() + WAIT_S
    while not any(ack.uid == uid for ack in device.acks):
        assert time.monotonic() < until_s
        with suppress(TransportError, pytest.fail.Exception):
            device.send(uid, data)
            device.until(lambda: any(ack.uid == uid for ack in device.acks), 1.0)


def test_two_federations_share_a_broker(
    broker: EmbeddedBroker, serving: Any, aggregator_of: Any, device_at: Any, tmp_path: Path
) -> None:
    running = [serving(broker, federation=name, state=tmp_path / name, rounds={"number": 1}) for name in ("a", "b")]
    for name in ("a", "b"):
        device = device_at(broker, f"pi-of-{name}", federation=name)
        device.say("idle")
        for number in (1, 2):
            manifest = device.manifest(number)
            assert manifest.selected == (f"pi-of-{name}",)
            device.answer(manifest, steps=2 - number, statistics_images=32)
    assert [each.end() for each in running] == [True, True]


def test_a_second_aggregator_on_the_same_folder_is_refused(
    broker: EmbeddedBroker, serving: Any, aggregator_of: Any, device_at: Any
) -> None:
    serving(broker, rounds={"number": 1})
    device = device_at(broker)
    device.say("idle")
    device.manifest(1)
    with pytest.raises(StateError, match="in use by another distreal-edge"):
        aggregator_of(broker).run(threading.Event())


def test_a_folder_of_another_federation_or_network_is_refused(
    broker: EmbeddedBroker, serving: Any, aggregator_of: Any, device_at: Any
) -> None:
    running = serving(broker)
    device = device_at(broker)
    device.say("idle")
    device.manifest(1)
    running.stopped()
    with pytest.raises(StateError, match="belongs to network"):
        aggregator_of(broker, kind="residual").run(threading.Event())


def test_nobody_to_measure_statistics_is_a_mistake_in_the_configuration(
    broker: EmbeddedBroker, aggregator_of: Any, lesson: Lesson, images_of: Any
) -> None:
    nobody = replace(lesson, statistics_images=0)
    with pytest.raises(ConfigError, match=r"training\.statistics_images"):
        aggregator_of(broker, lesson=nobody)
    aggregator_of(broker, lesson=nobody, calibration=images_of(4))
    aggregator_of(broker, lesson=nobody, kind="depthwise")


def test_images_that_do_not_fit_the_network_are_refused_before_anything_starts(
    broker: EmbeddedBroker, aggregator_of: Any, images_of: Any
) -> None:
    good = images_of(4)
    wrong = {
        "takes": replace(good, images=np.zeros((4, 1, 6, 6), np.uint8)),
        "has 4 classes": replace(good, classes=4),
        "at least 2": good.take([0]),
    }
    for message, dataset in wrong.items():
        for part in ("test", "calibration"):
            with pytest.raises(DataError, match=message):
                aggregator_of(broker, **{part: dataset})


def test_everybody_can_see_how_it_goes(broker: EmbeddedBroker, serving: Any, device_at: Any, images_of: Any) -> None:
    topics = Topics("test")
    seen: list[AggregatorHealth] = []
    with Session(host=broker.host, port=broker.port, client_id="watcher") as watcher:
        watcher.wait_connected(WAIT_S)
        watcher.subscribe(topics.aggregator_health).wait(WAIT_S)
        running = serving(broker, test=images_of(10), calibration=images_of(10), rounds={"number": 1})
        device = device_at(broker)
        device.say("idle")
        device.answer(device.manifest(1))
        assert running.end() is True
        while not seen or seen[-1].phase != "finished":
            event = watcher.events.get(timeout=WAIT_S)
            if isinstance(event, Message):
                seen.append(decode(AggregatorHealth, event.payload, where=event.topic))
    phases = [health.phase for health in seen]
    assert list(dict.fromkeys(phases)) == ["waiting", "collecting", "averaging", "evaluating", "finished"]
    assert seen[-1].accuracy is not None
    collecting = next(health for health in seen if health.phase == "collecting")
    assert (collecting.round, collecting.rounds, collecting.selected) == (1, 1, ("pi-1",))
