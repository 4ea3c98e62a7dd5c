"""The program around the aggregator: it carries events from the broker to the state machine, and acts."""

from __future__ import annotations

import hashlib
import logging
import queue
import secrets
import time
from typing import TYPE_CHECKING, Any

from distreal_edge.aggregator.closing import average_round, judge_round, record_round
from distreal_edge.aggregator.evaluation import HeldOut
from distreal_edge.aggregator.ledger import Ledger
from distreal_edge.aggregator.outbound import Outbound
from distreal_edge.aggregator.reception import Reception
from distreal_edge.aggregator.restoring import Restored, keep_round, restore, stored_updates
from distreal_edge.aggregator.rounds import AggregatorRounds, Close, Finish, Open, RoundSettings
from distreal_edge.aggregator.store import Store
from distreal_edge.aggregator.telling import Telling
from distreal_edge.durable import held_folder
from distreal_edge.errors import ConfigError, ProtocolError, TransportError
from distreal_edge.network import Network
from distreal_edge.status import StatusSocket
from distreal_edge.transport import (
    Ack,
    AggregatorState,
    Connected,
    DeviceState,
    DeviceTopic,
    Disconnected,
    Manifest,
    Message,
    Session,
    Topics,
    UpdateTopic,
    Want,
    decode,
    encode,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from distreal_edge.aggregator.lesson import Lesson
    from distreal_edge.data import Dataset
    from distreal_edge.dropout import Table

__all__ = ["Aggregator"]

_log = logging.getLogger(__name__)
_TICK_S = 0.1
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
        tell: Callable[[str], None] = lambda _status: None,
    ) -> None:
        """Prepare an aggregator; `broker` holds the `Session`'s connection arguments.

        `test` are held-out images, `calibration` those on which batch-norm statistics are measured; without the
        latter devices measure them. `tell` is called in every turn of the loop, with one line on what goes on.
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
        self._table = table.to_bytes()
        self._draw = table.draw
        self._full_macs = table.rows[-1].macs
        self._settings = settings
        self._lesson = lesson
        self._state = state
        self._broker = broker
        self._tell = tell
        self._session_id = secrets.token_hex(8)

    @staticmethod
    def needs_closing_measurement(network: Network, calibration: Dataset | None) -> bool:
        """Return whether devices must measure the last model's statistics in a round of its own."""
        return bool(network.plan.statistics) and calibration is None

    def run(self, stop: threading.Event) -> bool:
        """Serve rounds until the last is closed, or until `stop` is set; return whether the training is complete.

        Raises `StateError` when the state folder cannot be used, `TransportError` when the broker refuses us for good.
        """
        offline = encode(AggregatorState("offline", self._session_id))
        with (
            held_folder(self._state),
            StatusSocket(self._state) as self._status_socket,
            Ledger(self._state / "ledger.sqlite") as self._ledger,
        ):
            self._store = Store(self._state)
            restored = restore(
                self._ledger, self._store, federation=self._federation, network=self._network, table=self._table
            )
            with Session(
                # Of the federation: two may share a broker, and two aggregators of one must not.
                client_id=f"aggregator-{hashlib.sha256(self._federation.encode()).hexdigest()[:16]}",
                will_topic=self._topics.aggregator_state,
                will_payload=offline,
                **self._broker,
            ) as self._session:
                self._session.publish_retained(
                    self._topics.aggregator_state, encode(AggregatorState("online", self._session_id))
                )
                self._session.subscribe(self._topics.device_states, self._topics.wants, self._topics.updates)
                self._go_on(restored)
                return self._serve(stop)

    def _go_on(self, restored: Restored) -> None:
        self._outbound = Outbound()
        self._use_model(restored.model)
        self._began_after = restored.done
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
        )
        self._manifest: Manifest | None = None
        if restored.manifest is not None:
            self._announce(restored.manifest, restored.announced)
            _log.info("round %d goes on, %d updates are here", restored.manifest.number, len(restored.answered))
        elif restored.done:
            _log.info("goes on after round %d", restored.done)

    def _use_model(self, data: bytes) -> None:
        self._network = Network.from_bytes(data, "the federation's model")
        self._model_reference, self._table_reference = self._outbound.offer(data, self._table)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _serve(self, stop: threading.Event) -> bool:
        health_due_s = 0.0
        while not stop.is_set():
            self._telling.turn()
            self._take_events()
            now = time.time()
            for action in self._rounds.tick(now):
                match action:
                    case Open():
                        self._open(action)
                    case Close():
                        self._close()
                    case Finish() if self._finish():
                        return True
            self._outbound.send(self._session, self._topics, stop)
            for device, ack in self._reception.quiet(time.monotonic()):
                self._answer(device, ack)
            self._telling.say_waiting(now)
            if time.monotonic() >= health_due_s:
                health_due_s = time.monotonic() + _HEALTH_S
                self._telling.publish()
        _log.info("stopped after %d rounds; the next start goes on from here", self._rounds.done)
        return False

    def _take_events(self) -> None:
        """See to what arrives, for about a tick: a stream of messages must not keep a round from closing."""
        until_s = time.monotonic() + _TICK_S
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                event = self._session.events.get(timeout=left_s)
            except queue.Empty:
                return
            match event:
                case Message():
                    self._message(event)
                case Connected():
                    self._rounds.broker_back(time.time())
                case Disconnected(reason, final=True):
                    raise self._session.failure or TransportError(reason)
                case Disconnected():
                    self._rounds.broker_gone()
            if self._session.events.empty():
                return

    def _message(self, message: Message) -> None:
        try:
            match self._topics.parse(message.topic):
                case DeviceTopic(device, "state"):
                    self._device_state(device, decode(DeviceState, message.payload, where=message.topic))
                case DeviceTopic(_, "want"):
                    want = decode(Want, message.payload, where=message.topic)
                    self._outbound.want(want.digest, want.missing)
                case UpdateTopic() as topic:
                    self._update_frame(topic, message.payload)
        except ProtocolError as error:
            _log.warning("ignored: %s", error)

    def _device_state(self, device: str, state: DeviceState) -> None:
        was_present = device in self._rounds.present
        if state.state in {"offline", "degraded"}:
            self._rounds.device_gone(device)
        elif not self._rounds.device_seen(device, state.images):
            _log.warning("%s is left aside: there are too many devices", device)
        if was_present != (device in self._rounds.present):
            _log.info("%s is %s, %d images", device, "gone" if was_present else "here", state.images)

    def _update_frame(self, topic: UpdateTopic, frame: bytes) -> None:
        taken = self._reception.take(topic, frame, answered=self._rounds.answered, now=time.monotonic())
        if taken is None:
            return
        if taken.counts:
            self._rounds.update_stored(topic.device)
        self._answer(topic.device, taken.ack)

    def _answer(self, device: str, ack: Ack) -> None:
        self._session.publish(self._topics.ack(device), encode(ack))

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
        images = {device: self._rounds.present[device] for device in opened.selected}
        self._ledger.open_round(opened.number, encode(manifest), opened.opened_s, images)
        _log.info(
            "round %d of %d: %d devices, ceiling %.2f, %.0f s",
            opened.number,
            self._settings.last,
            len(opened.selected),
            manifest.ceiling,
            opened.deadline_s - opened.opened_s,
        )
        self._announce(manifest, images)

    def _announce(self, manifest: Manifest, images: Mapping[str, int]) -> None:
        self._manifest = manifest
        self._reception.open(manifest, self._network, images)
        self._telling.enter("collecting")
        self._session.publish_retained(self._topics.round, encode(manifest))
        self._outbound.want_all(manifest.model.digest)
        if self._rounds.done == self._began_after:
            # The table is the same in every round: later, only who comes anew asks for it.
            self._outbound.want_all(manifest.table.digest)

    def _close(self) -> None:
        opened, manifest = self._rounds.open, self._manifest
        assert opened is not None
        assert manifest is not None
        for device, ack in self._reception.close():
            self._answer(device, ack)
        self._telling.enter("averaging")
        averaged = average_round(
            self._network,
            stored_updates(self._ledger, self._store, opened.number, self._network.plan),
            self._lesson.rule,
        )
        self._telling.enter("evaluating")
        judged = judge_round(opened, averaged, self._held_out)
        closed = record_round(opened, manifest, averaged, judged, closed_s=time.time())
        keep_round(self._ledger, self._store, judged, closed)
        self._use_model(closed.model)
        record = closed.record
        scored = (
            ""
            if record.accuracy is None
            else (f", accuracy {100 * record.accuracy:.2f} % after round {record.evaluated_round}")
        )
        if record.accuracy is not None:
            self._telling.accuracy = record.accuracy
        self._rounds.closed()
        self._telling.phase = "waiting"
        _log.info(
            "round %d closed: %d of %d devices, %d images%s",
            opened.number,
            len(record.answered),
            len(opened.selected),
            record.images,
            scored,
        )

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
        _log.info("finished after %d rounds", self._settings.last)
        return True
