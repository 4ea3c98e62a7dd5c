"""The program around the aggregator: it carries events from the broker to the state machine, and acts."""

from __future__ import annotations

import hashlib
import logging
import queue
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from distreal_edge.aggregator.averaging import Average, AverageKind, pool_statistics
from distreal_edge.aggregator.evaluation import evaluate, measure_statistics, with_statistics
from distreal_edge.aggregator.inbound import Inbound, refusal
from distreal_edge.aggregator.ledger import Ledger, StoredUpdate
from distreal_edge.aggregator.rounds import AggregatorRounds, Close, Finish, Open, RoundSettings
from distreal_edge.aggregator.schedule import ceiling_at, check_ceilings, learning_rate_at
from distreal_edge.aggregator.store import Store
from distreal_edge.aggregator.validation import check_update
from distreal_edge.device import decode_update, most_bytes
from distreal_edge.durable import held_folder
from distreal_edge.errors import ProtocolError, TransportError
from distreal_edge.network import Network
from distreal_edge.transport import (
    Ack,
    AggregatorHealth,
    AggregatorState,
    BlobReference,
    DeviceState,
    DeviceTopic,
    Disconnected,
    FrameReader,
    Manifest,
    Message,
    Session,
    Topics,
    Training,
    UpdateTopic,
    Want,
    chunk_count,
    decode,
    encode,
)

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from distreal_edge.data import Dataset
    from distreal_edge.dropout import Table

__all__ = ["Aggregator", "Lesson"]

_log = logging.getLogger(__name__)
_TICK_S = 0.1
_HEALTH_S = 1.0
_SAY_WAITING_S = 10.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """How the federation trains: what `Training` of the manifest is made from, round by round.

    `ceilings` are steps `(from share of the rounds, ceiling)`; `final_lr` None keeps the learning rate constant.
    """

    batch: int
    lr: float
    final_lr: float | None
    momentum: float
    weight_decay: float
    epochs: float
    most_epochs: float
    statistics_images: int
    average: AverageKind
    ceilings: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Check the ceilings' order."""
        check_ceilings(self.ceilings)

    def training(self, number: int, rounds: int, *, measured_here: bool) -> Training:
        """Return what devices are told for a round; they measure statistics unless the aggregator does."""
        lr = learning_rate_at(self.lr, self.final_lr, min(number, rounds), rounds)
        return Training(
            batch=self.batch,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            most_epochs=max(self.epochs, self.most_epochs),
            statistics_images=0 if measured_here else self.statistics_images,
        )


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A closed round: a line of `rounds.jsonl`.

    `accuracy` and `loss` are those of the model after round `evaluated_round`, at full width; None when it was not
    evaluated. `macs` are the multiply-accumulates that all devices spent.
    """

    round: int
    started_s: float
    closed_s: float
    ceiling: float
    lr: float
    selected: tuple[str, ...]
    answered: tuple[str, ...]
    images: int
    mini_batches: int
    macs: int
    training_loss: float | None
    evaluated_round: int | None
    evaluated_images: int
    accuracy: float | None
    loss: float | None
    model: str


class Aggregator:
    """The averaging side of one federation. `run` serves its rounds to the end, and can be continued after any stop."""

    def __init__(
        self,
        *,
        federation: str,
        network: Network,
        table: Table,
        settings: RoundSettings,
        lesson: Lesson,
        state: Path,
        broker: dict[str, Any],
        test: Dataset | None = None,
        calibration: Dataset | None = None,
        threads: int = 1,
    ) -> None:
        """Prepare an aggregator; `broker` holds the `Session`'s connection arguments.

        `test` are held-out images, `calibration` those on which batch-norm statistics are measured; without the
        latter devices measure them.
        """
        table.check_network(network.digest, network.plan.sizes)
        self._topics = Topics(federation)
        self._federation = federation
        self._network = network
        self._table = table.to_bytes()
        self._draw = table.draw
        self._settings = settings
        self._lesson = lesson
        self._state = state
        self._broker = broker
        self._test = test
        self._calibration = calibration
        self._threads = threads
        self._session_id = secrets.token_hex(8)
        # Whether the statistics of a model are known as soon as the model is.
        self._measured_here = calibration is not None or not network.plan.statistics

    @staticmethod
    def needs_closing_measurement(network: Network, calibration: Dataset | None) -> bool:
        """Return whether devices must measure the last model's statistics in a round of its own."""
        return bool(network.plan.statistics) and calibration is None

    def run(self, stop: threading.Event) -> bool:
        """Serve rounds until the last is closed, or until `stop` is set; return whether the training is complete."""
        offline = encode(AggregatorState("offline", self._session_id))
        with held_folder(self._state), Ledger(self._state / "ledger.sqlite") as self._ledger:
            self._store = Store(self._state)
            self._restore()
            with Session(
                client_id="aggregator",
                will_topic=self._topics.aggregator_state,
                will_payload=offline,
                **self._broker,
            ) as self._session:
                self._session.publish_retained(
                    self._topics.aggregator_state, encode(AggregatorState("online", self._session_id))
                )
                self._session.subscribe(self._topics.device_states, self._topics.wants, self._topics.updates)
                return self._serve(stop)

    # -- what was, and what is -------------------------------------------------------------------------------------

    def _restore(self) -> None:
        self._ledger.claim(federation=self._federation, network=self._network.digest)
        self._store.keep_table(self._table)
        done = self._ledger.rounds_done()
        opened = self._ledger.opened()
        if done == 0 and opened is None:
            self._store.save_model(0, self._network.to_bytes())
        self._use_model(self._store.load_model(done))
        self._manifest: Manifest | None = None
        self._records = self._ledger.records()
        self._accuracy = self._last_accuracy()
        reopened: Open | None = None
        answered: list[str] = []
        if opened is not None:
            manifest = decode(Manifest, opened.manifest, where="ledger")
            self._manifest = manifest
            reopened = Open(
                manifest.number,
                manifest.selected,
                opened.opened_s,
                manifest.train_until_s,
                manifest.deadline_s,
                manifest.measure_only,
            )
            answered = [update.device for update in self._ledger.updates(opened.number)]
            _log.info("round %d goes on, %d updates are here", opened.number, len(answered))
        else:
            self._store.drop_updates()
        self._store.write_records(self._records)
        self._rounds = AggregatorRounds(self._settings, done=done, reopened=reopened, answered=answered)
        self._inbound = Inbound(most_bytes(self._network.plan))
        self._images: dict[str, int] = {}
        self._wanted: set[tuple[str, int]] = set()
        self._phase = "waiting"
        self._said_waiting_s = 0.0

    def _last_accuracy(self) -> float | None:
        records = [msgspec.json.decode(record, type=Record) for record in reversed(self._records)]
        return next((record.accuracy for record in records if record.accuracy is not None), None)

    def _use_model(self, data: bytes) -> None:
        self._network = Network.from_bytes(data, "the federation's model")
        self._model_bytes = data
        self._blobs = {hashlib.sha256(blob).hexdigest(): blob for blob in (data, self._table)}

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _serve(self, stop: threading.Event) -> bool:
        if self._manifest is not None:
            self._announce(self._manifest)
        health_due_s = 0.0
        while not stop.is_set():
            self._take_event()
            now = time.time()
            for action in self._rounds.tick(now):
                match action:
                    case Open():
                        self._open(action)
                    case Close():
                        self._close()
                    case Finish():
                        self._finish()
                        return True
            self._send_wanted()
            for device, ack in self._inbound.quiet(now):
                self._session.publish(self._topics.ack(device), encode(ack))
            self._say_waiting(now)
            if time.monotonic() >= health_due_s:
                health_due_s = time.monotonic() + _HEALTH_S
                self._publish_health()
        return False

    def _take_event(self) -> None:
        try:
            event = self._session.events.get(timeout=_TICK_S)
            while True:
                match event:
                    case Message():
                        self._message(event)
                    case Disconnected(reason, final=True):
                        raise TransportError(reason)
                event = self._session.events.get_nowait()
        except queue.Empty:
            pass

    def _message(self, message: Message) -> None:
        try:
            match self._topics.parse(message.topic):
                case DeviceTopic(device, "state"):
                    self._device_state(device, message)
                case DeviceTopic(_, "want"):
                    want = decode(Want, message.payload, where=message.topic)
                    self._wanted.update((want.digest, index) for index in want.missing if want.digest in self._blobs)
                case UpdateTopic() as topic:
                    self._update_frame(topic, message.payload)
        except ProtocolError as error:
            _log.warning("ignored: %s", error)

    def _device_state(self, device: str, message: Message) -> None:
        state = decode(DeviceState, message.payload, where=message.topic)
        self._images[device] = state.images
        present = state.state not in {"offline", "degraded"}
        if present != (device in self._rounds.present):
            _log.info("%s is %s, %d images", device, "here" if present else "gone", state.images)
        if present:
            self._rounds.device_seen(device)
        else:
            self._rounds.device_gone(device)

    def _update_frame(self, topic: UpdateTopic, frame: bytes) -> None:
        if self._ledger.has_update(topic.uid):  # acknowledged before, but the device did not hear it
            self._answer(topic.device, Ack(topic.uid, "durable", None))
            return
        data = self._inbound.add(topic, frame, time.time())
        if data is None:
            return
        try:
            update = decode_update(data, self._network.plan)
            manifest = None if self._rounds.open is None else self._manifest
            announced = self._images.get(topic.device)
            check_update(update, manifest=manifest, device=topic.device, uid=topic.uid, announced_images=announced)
            if topic.device in self._rounds.answered:
                raise ProtocolError(f"duplicate: {topic.device} has answered round {update.header.round} already")
        except ProtocolError as error:
            self._ledger.count_refusal(str(error).partition(":")[0])
            _log.warning("refused an update of %s: %s", topic.device, error)
            self._answer(topic.device, refusal(topic.uid, error))
            return
        self._store.save_update(topic.uid, data)
        self._ledger.store_update(StoredUpdate(topic.uid, update.header.round, topic.device))
        self._answer(topic.device, Ack(topic.uid, "durable", None))
        self._rounds.update_stored(topic.device)
        _log.info(
            "round %d: %s answered, %d images in %d mini-batches",
            update.header.round,
            topic.device,
            update.header.images,
            update.header.mini_batches,
        )

    def _answer(self, device: str, ack: Ack) -> None:
        self._session.publish(self._topics.ack(device), encode(ack))

    # -- rounds ------------------------------------------------------------------------------------------------------

    def _open(self, opened: Open) -> None:
        rounds = self._settings.number
        manifest = Manifest(
            number=opened.number,
            model=_reference(self._model_bytes),
            table=_reference(self._table),
            ceiling=ceiling_at(self._lesson.ceilings, min(opened.number, rounds), rounds),
            deadline_s=opened.deadline_s,
            train_until_s=opened.train_until_s,
            selected=opened.selected,
            seed=self._settings.seed,
            draw=self._draw,
            training=self._lesson.training(opened.number, rounds, measured_here=self._measured_here),
            measure_only=opened.measure_only,
        )
        self._ledger.open_round(opened.number, encode(manifest), opened.opened_s)
        self._manifest = manifest
        _log.info(
            "round %d of %d: %d devices, ceiling %.2f, %.0f s",
            opened.number,
            self._settings.last,
            len(opened.selected),
            manifest.ceiling,
            opened.deadline_s - opened.opened_s,
        )
        self._announce(manifest)

    def _announce(self, manifest: Manifest) -> None:
        self._phase = "collecting"
        self._session.publish_retained(self._topics.round, encode(manifest))
        self._publish_health()
        # The table is the same in every round; who does not have it yet asks for it.
        self._wanted.update((manifest.model.digest, index) for index in range(manifest.model.chunks))

    def _send_wanted(self) -> None:
        """Publish what was asked for, once for all who asked, until something else arrives."""
        readers = {digest: FrameReader(blob) for digest, blob in self._blobs.items()}
        while self._wanted and self._session.connected and self._session.events.empty():
            digest, index = min(self._wanted)
            self._wanted.discard((digest, index))
            if digest not in readers:
                continue
            try:
                self._session.send_frames(
                    lambda i, digest=digest: self._topics.blob(digest, i),  # type: ignore[misc]
                    readers[digest].frames([index]),
                )
            except TransportError as error:
                _log.warning("chunk %d of %s was not sent: %s", index, digest[:12], error)

    def _close(self) -> None:
        opened, manifest = self._rounds.open, self._manifest
        assert opened is not None
        assert manifest is not None
        self._phase = "averaging"
        self._publish_health()
        average = Average(self._network.plan, self._lesson.average)
        answered: list[str] = []
        measured = []
        images = mini_batches = macs = 0
        loss = 0.0
        for stored in self._ledger.updates(opened.number):
            update = decode_update(self._store.load_update(stored.uid), self._network.plan)
            header = update.header
            average.add(update)
            answered.append(stored.device)
            if header.statistics_images:
                measured.append((header.statistics_images, update.statistics))
            images += header.images
            mini_batches += header.mini_batches
            macs += header.macs
            loss += header.images * (header.loss or 0.0)
        received = with_statistics(self._network, pool_statistics(measured))
        after = Network(self._network.plan, average.apply(self._network.weights))
        self._phase = "evaluating"
        self._publish_health()
        known = self._with_known_statistics(opened, received, after, measured=bool(measured))
        data = (known[1] if known is not None and known[0] == opened.number else after).to_bytes()
        self._store.save_model(opened.number, data)
        scores = None
        if known is not None:
            self._store.save_latest(known[1].to_bytes())
            scores = None if self._test is None else evaluate(known[1], self._test, self._threads)
        record = Record(
            round=opened.number,
            started_s=opened.opened_s,
            closed_s=time.time(),
            ceiling=manifest.ceiling,
            lr=manifest.training.lr,
            selected=opened.selected,
            answered=tuple(sorted(answered)),
            images=images,
            mini_batches=mini_batches,
            macs=macs,
            training_loss=loss / images if images else None,
            evaluated_round=None if known is None else known[0],
            evaluated_images=0 if scores is None else scores.images,
            accuracy=None if scores is None else scores.accuracy,
            loss=None if scores is None else scores.loss,
            model=hashlib.sha256(data).hexdigest(),
        )
        self._records.append(msgspec.json.encode(record))
        self._ledger.close_round(opened.number, self._records[-1])
        self._store.write_records(self._records)
        self._store.drop_updates()
        self._use_model(data)
        self._accuracy = self._accuracy if scores is None else scores.accuracy
        self._rounds.closed()
        self._phase = "waiting"
        _log.info(
            "round %d closed: %d of %d devices, %d images%s",
            opened.number,
            len(answered),
            len(opened.selected),
            images,
            "" if scores is None else f", accuracy {100 * scores.accuracy:.2f} % after round {record.evaluated_round}",
        )

    def _with_known_statistics(
        self, opened: Open, received: Network, after: Network, *, measured: bool
    ) -> tuple[int, Network] | None:
        """Return the newest model whose statistics belong to it, and the round after which it was that model.

        Measured here, that is the model just averaged; measured on devices, the one that they received.
        """
        if self._calibration is not None and after.plan.statistics:
            return opened.number, with_statistics(after, measure_statistics(after, self._calibration, self._threads))
        if not after.plan.statistics:
            return opened.number, after
        # A round that only measured left the model as it was received.
        return (opened.number if opened.measure_only else opened.number - 1, received) if measured else None

    def _finish(self) -> None:
        self._phase = "finished"
        now = time.time()
        last = self._settings.last
        manifest = Manifest(
            number=last,
            model=_reference(self._model_bytes),
            table=_reference(self._table),
            ceiling=1.0,
            deadline_s=now,
            train_until_s=now,
            selected=(),
            seed=self._settings.seed,
            draw=self._draw,
            training=self._lesson.training(last, self._settings.number, measured_here=self._measured_here),
            finished=True,
        )
        published = self._session.publish_retained(self._topics.round, encode(manifest))
        self._publish_health()
        published.wait_settled(5.0)
        _log.info("finished after %d rounds", last)

    def _publish_health(self) -> None:
        opened = self._rounds.open
        health = AggregatorHealth(
            time_s=time.time(),
            round=self._rounds.done if opened is None else opened.number,
            rounds=self._settings.last,
            phase=self._phase,  # type: ignore[arg-type]
            accuracy=self._accuracy,
            selected=() if opened is None else opened.selected,
            answered=tuple(sorted(self._rounds.answered)),
        )
        self._session.publish_retained(self._topics.aggregator_health, encode(health), qos=0)

    def _say_waiting(self, now: float) -> None:
        """Never wait silently."""
        if now - self._said_waiting_s < _SAY_WAITING_S:
            return
        self._said_waiting_s = now
        opened = self._rounds.open
        if opened is None:
            here, least = len(self._rounds.present), self._settings.least_devices
            if here < least:
                _log.info("waiting for devices: %d of at least %d are here", here, least)
        else:
            missing = sorted(set(opened.selected) - self._rounds.answered)
            _log.info(
                "round %d: waiting for %s, %.0f s left", opened.number, ", ".join(missing[:5]), opened.deadline_s - now
            )


def _reference(blob: bytes) -> BlobReference:
    return BlobReference(hashlib.sha256(blob).hexdigest(), len(blob), chunk_count(len(blob)))
