"""The program around the aggregator: it carries events from the broker to the state machine, and acts."""

from __future__ import annotations

import hashlib
import logging
import queue
import time
from typing import TYPE_CHECKING, Any

import msgspec

from distreal_edge.aggregator.evaluation import HeldOut
from distreal_edge.aggregator.finishing import ROOM_S, Finishing, Made
from distreal_edge.aggregator.ledger import Decision, OpenRound
from distreal_edge.aggregator.outbound import Outbound
from distreal_edge.aggregator.presence import Presence
from distreal_edge.aggregator.reception import Reception
from distreal_edge.aggregator.recovery import open_ledger
from distreal_edge.aggregator.restoring import Restored, keep_open, keep_round, restore
from distreal_edge.aggregator.rounds import AggregatorRounds, Close, Finish, Open, RoundSettings, chosen_line
from distreal_edge.aggregator.store import Keeping, Store
from distreal_edge.aggregator.telling import Telling, closed_line
from distreal_edge.durable import held_folder
from distreal_edge.errors import ConfigError, FullDiskError, ProtocolError, TransportError
from distreal_edge.network import Network
from distreal_edge.status import StatusSocket
from distreal_edge.transport import (
    Ack,
    AggregatorState,
    AggregatorTopic,
    Connected,
    DeviceState,
    DeviceTopic,
    Disconnected,
    Manifest,
    Message,
    Offer,
    Session,
    SessionNumbers,
    Topics,
    UpdateTopic,
    Want,
    decode,
    encode,
)
from distreal_edge.words import count_of, round_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from distreal_edge.aggregator.lesson import Lesson
    from distreal_edge.aggregator.reception import Taken
    from distreal_edge.data import Dataset
    from distreal_edge.dropout import Table
    from distreal_edge.transport import Delivery

__all__ = ["Aggregator"]

_log = logging.getLogger(__name__)
_TICK_S = 0.1
_BUSY_TICK_S = 0.005
_CLOSING_TICK_S = 0.02
_BATCH_S = 0.25
"""Updates that are whole are noted at once when nothing else has come, else so often: all of them in one go."""
_HEALTH_S = 1.0
_LAST_WORD_S = 5.0


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
        keeping: Keeping = Keeping(),  # noqa: B008 - it is immutable
        tell: Callable[[str], None] = lambda _status: None,
    ) -> None:
        """Prepare an aggregator; `broker` holds the `Session`'s connection arguments.

        `test` are held-out images, `calibration` those on which batch-norm statistics are measured; without the
        latter devices measure them. `keeping` says which models stay. `tell` is called in
        every turn of the loop, with one line on what goes on.
        Raises what `HeldOut.check` and `Table.check_network` raise, and `ConfigError` when nobody would measure the
        statistics.
        """
        table.check_network(network.structure, network.plan.sizes)
        # Whether the statistics of a model are known as soon as the model is.
        self._measured_here = not self.needs_closing_measurement(network, calibration)
        if not self._measured_here and lesson.statistics_images == 0:
            raise ConfigError(
                "training.statistics_images: 0 leaves nobody to measure batch-norm statistics; "
                "let devices measure them on some images, or give the aggregator evaluation.calibration_images"
            )
        self._held_out = HeldOut(test, calibration, threads)
        self._held_out.check(network)
        self._topics = Topics(federation)
        self._federation = federation
        self._network = network
        self._rows = table
        self._table = table.to_bytes()
        self._draw = table.draw
        self._full_macs = table.rows[-1].macs
        self._settings = settings
        self._lesson = lesson
        self._state = state
        self._broker = broker
        self._keeping = keeping
        self._tell = tell
        self._finishing: Finishing | None = None

    @staticmethod
    def needs_closing_measurement(network: Network, calibration: Dataset | None) -> bool:
        """Return whether devices must measure the last model's statistics in a round of its own."""
        return bool(network.plan.statistics) and calibration is None

    def run(self, stop: threading.Event) -> bool:
        """Serve rounds until the last is closed, or until `stop` is set; return whether the training is complete.

        Raises `StateError` when the state folder cannot be used, `TransportError` when the broker refuses us for good.
        """
        with held_folder(self._state), StatusSocket(self._state) as self._status_socket:
            self._store = Store(self._state)
            with open_ledger(self._store, self._network) as self._ledger:
                restored = restore(
                    self._ledger, self._store, federation=self._federation, network=self._network, table=self._table
                )
                try:
                    return self._lead(restored, stop)
                finally:
                    if self._finishing is not None:
                        self._finishing.abandon()
                        self._finishing = None

    def _lead(self, restored: Restored, stop: threading.Event) -> bool:
        with Session(
            # Of the federation: two may share a broker, and two aggregators of one must not.
            client_id=f"aggregator-{hashlib.sha256(self._federation.encode()).hexdigest()[:16]}",
            will_topic=self._topics.aggregator_state,
            will_payload=lambda number: encode(AggregatorState("offline", number, self._federation)),
            number=SessionNumbers(self._state / "session"),
            **self._broker,
        ) as self._session:
            self._session.clients = 1  # devices wait longer after a broker's restart, so that it is there for them
            self._session.publish_retained(
                self._topics.aggregator_state,
                lambda number: encode(AggregatorState("online", number, self._federation)),
            )
            self._session.subscribe(
                self._topics.aggregator_state,
                self._topics.device_states,
                self._topics.wants,
                self._topics.offers,
                self._topics.updates,
            )
            self._go_on(restored)
            return self._serve(stop)

    def _go_on(self, restored: Restored) -> None:
        self._outbound = Outbound()
        self._presence = Presence()
        self._use_model(restored.model)
        self._rounds = AggregatorRounds(
            self._settings, done=restored.done, reopened=restored.opened, answered=restored.answered
        )
        self._reception = Reception(self._ledger, self._store, self._network, self._full_macs)
        self._telling = Telling(
            session=self._session,
            topics=self._topics,
            status_socket=self._status_socket,
            rounds=self._rounds,
            accuracy=restored.accuracy,
            tell=self._tell,
            refusals=self._ledger.refusals,
        )
        self._settle_due_s = 0.0
        self._lost = {update.device: update.uid for update in restored.lost}
        self._manifest: Manifest | None = None
        if restored.manifest is not None:
            self._announce(restored.manifest, restored.announced)
            _log.info("round %d goes on, with %s", restored.manifest.number, count_of(len(restored.answered), "update"))
        elif restored.done:
            _log.info("goes on after round %d", restored.done)

    def _use_model(self, data: bytes) -> None:
        self._network = Network.from_bytes(data, "the federation's model")
        self._model_reference, self._table_reference = self._outbound.offer(data, self._table)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _serve(self, stop: threading.Event) -> bool:
        health_due_s = room_due_s = 0.0
        while not stop.is_set():
            self._telling.turn()
            self._take_events()
            self._answer_updates()
            now = time.time()
            if time.monotonic() >= room_due_s:
                try:
                    if self._get_on(now):
                        return True
                    self._telling.trouble = "" if self._finishing is None else self._finishing.trouble
                except FullDiskError as error:
                    self._telling.trouble = str(error)
                    room_due_s = time.monotonic() + ROOM_S
            self._outbound.advance(self._publish_chunk, time.monotonic())
            self._telling.say_waiting(now)
            if time.monotonic() >= health_due_s:
                health_due_s = time.monotonic() + _HEALTH_S
                self._telling.publish()
        _log.info("stopped after %s; the next start goes on from here", count_of(self._rounds.done, "round"))
        return False

    def _get_on(self, now: float) -> bool:
        """Do what is due; return whether the training is over.

        Raises `FullDiskError`: what could not be stored is as if it had not been begun, and is due again.
        """
        for action in self._rounds.tick(now):
            match action:
                case Open():
                    self._open(action)
                case Close(why=why):
                    self._close(why, now)
                case Finish() if self._finish():
                    return True
        self._look_at_closing()
        return False

    def _take_events(self) -> None:
        """See to what arrives, for about a tick: a stream of messages must not keep a round from closing."""
        until_s = time.monotonic() + (_TICK_S if self._finishing is None else _CLOSING_TICK_S)
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                event = self._session.events.get(timeout=_BUSY_TICK_S if self._outbound.busy else left_s)
            except queue.Empty:
                return
            match event:
                case Message():
                    self._message(event)
                case Connected():
                    self._rounds.broker_back(time.time())
                    for device, uid in self._lost.items():
                        self._answer(device, Ack(uid, "resend", None))
                case Disconnected(reason, final=True):
                    raise self._session.failure or TransportError(reason)
                case Disconnected():
                    self._rounds.broker_gone()
            if self._session.events.empty() or self._outbound.busy:
                return

    def _message(self, message: Message) -> None:
        try:
            match self._topics.parse(message.topic):
                case DeviceTopic(device, "state"):
                    self._device_state(device, decode(DeviceState, message.payload, where=message.topic))
                case DeviceTopic(_, "want"):
                    want = decode(Want, message.payload, where=message.topic)
                    self._outbound.want(want.digest, want.missing, time.monotonic())
                case DeviceTopic(device, "offer"):
                    offer = decode(Offer, message.payload, where=message.topic)
                    self._tell_device(device, self._reception.offered(device, offer, answered=self._rounds.answered))
                case UpdateTopic() as topic:
                    answered = self._rounds.answered
                    self._tell_device(topic.device, self._reception.take(topic, message.payload, answered=answered))
                case AggregatorTopic("state") if not message.retained:
                    if decode(AggregatorState, message.payload, where=message.topic).state == "offline":
                        # The will of a connection that is over came late, and hides that we are here.
                        self._session.republish(message.topic)
        except ProtocolError as error:
            _log.warning("ignored: %s", error)

    def _device_state(self, device: str, state: DeviceState) -> None:
        if not self._presence.counts(device, state):
            return
        was_present = device in self._rounds.present
        if state.state in {"offline", "degraded"}:
            self._rounds.device_gone(device)
        elif not self._rounds.device_seen(device, state.images):
            _log.warning("%s is left aside: there are too many devices", device)
        if was_present != (device in self._rounds.present):
            _log.info("%s is %s, %s", device, "gone" if was_present else "here", count_of(state.images, "image"))

    def _answer_updates(self, *, at_once: bool = False) -> None:
        """Answer devices that had to wait: their updates are on the disk now, or it is their turn to send."""
        for device, taken in self._reception.turns():
            self._tell_device(device, taken)
        now_s = time.monotonic()
        if at_once or now_s >= self._settle_due_s or self._session.events.empty():
            self._settle_due_s = now_s + _BATCH_S
            for device, taken in self._reception.settle():
                self._tell_device(device, taken)

    def _tell_device(self, device: str, taken: Taken | None) -> None:
        if taken is None:
            return
        if taken.counts:
            self._rounds.update_stored(device)
        self._answer(device, taken.ack)

    def _answer(self, device: str, ack: Ack) -> None:
        self._session.publish(self._topics.ack(device), encode(ack))

    def _publish_chunk(self, digest: str, index: int, frame: bytes) -> Delivery:
        return self._session.publish(self._topics.blob(digest, index), frame)

    # -- rounds --------------------------------------------------------------------------------------------------------

    def _open(self, opened: Open) -> None:
        manifest = self._lesson.manifest(
            opened,
            self._settings,
            model=self._model_reference,
            table=self._table_reference,
            draw=self._draw,
            measured_here=self._measured_here,
        )
        manifest = msgspec.structs.replace(manifest, devices=len(self._rounds.present))
        images = {device: self._rounds.present[device] for device in opened.selected}
        chosen = chosen_line(self._settings, selected=len(opened.selected), present=len(self._rounds.present))
        noted = OpenRound(opened.number, encode(manifest), opened.opened_s)
        try:
            keep_open(self._ledger, self._store, noted, images, chosen)
        except FullDiskError:
            self._rounds.not_opened()
            raise
        _log.info(
            "%s: %s (%s), ceiling %.2f, %.0f s",
            round_of(opened.number, self._settings.number),
            count_of(len(opened.selected), "device"),
            chosen,
            manifest.ceiling,
            opened.deadline_s - opened.opened_s,
        )
        self._announce(manifest, images)

    def _announce(self, manifest: Manifest, images: Mapping[str, int]) -> None:
        self._manifest = manifest
        self._reception.open(manifest, self._network, images)
        self._outbound.expect(len(manifest.selected))
        self._telling.enter("collecting")
        self._session.publish_retained(self._topics.round, encode(manifest))

    def _close(self, why: str, now: float) -> None:
        """Take no more updates, and begin to average those that are here."""
        opened, manifest = self._rounds.open, self._manifest
        assert opened is not None
        assert manifest is not None
        self._answer_updates(at_once=True)
        if self._reception.unsettled:
            self._rounds.not_closed()
            raise FullDiskError(self._reception.unsettled)
        for device, ack in self._reception.close():
            self._answer(device, ack)
        self._lost.clear()
        self._why = why
        updates = tuple(self._ledger.updates(opened.number))
        _log.info("round %d closes: %s; %s", opened.number, why, count_of(len(updates), "update"))
        self._finishing = Finishing(
            opened,
            manifest,
            self._network,
            updates,
            self._store,
            self._lesson.rule,
            self._held_out,
            now,
            self._lesson.trained_part(self._rows, opened.number, self._settings.number),
        )
        self._telling.enter(self._finishing.phase)
        self._finishing.start()

    def _look_at_closing(self) -> None:
        """See how far the closed round is, and go on to the next once it is stored."""
        if self._finishing is None:
            return
        made = self._finishing.result()
        if self._telling.phase != self._finishing.phase:
            self._telling.enter(self._finishing.phase)
        if made is not None:
            self._closed(made)
            self._finishing = None

    def _closed(self, made: Made) -> None:
        record = made.closed.record
        for update in made.lost:
            lost = Decision(time.time(), update.round, update.device, "update lost", "its file was damaged")
            self._ledger.lose_update(update, lost)
        closed = Decision(record.closed_s, record.round, None, "closed", self._why)
        keep_round(self._ledger, self._store, made.closed, made.files, closed, made.metrics)
        self._store.prune_models(self._keeping)
        self._use_model(made.closed.model)
        if record.accuracy is not None:
            self._telling.accuracy = record.accuracy
        self._rounds.closed()
        self._telling.phase = "waiting"
        _log.info("%s", closed_line(record))

    def _finish(self) -> bool:
        """Say that the training is over; return whether the broker has heard it."""
        self._telling.enter("finished")
        manifest = self._lesson.last_manifest(
            self._settings,
            model=self._model_reference,
            table=self._table_reference,
            draw=self._draw,
            now_s=time.time(),
        )
        try:
            self._session.publish_retained(self._topics.round, encode(manifest)).wait(_LAST_WORD_S)
        except TransportError as error:
            _log.warning("nobody has heard yet that the training is over: %s", error)
            return False
        self._rounds.finished()
        _log.info("finished after %s", count_of(self._settings.number, "round"))
        return True
