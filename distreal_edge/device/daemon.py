"""The program around a device: it carries events from the broker and the trainer to the state machine, and acts."""

from __future__ import annotations

import hashlib
import logging
import queue
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from distreal_edge.device.belonging import Belonging
from distreal_edge.device.blobs import Blobs
from distreal_edge.device.fetching import Fetching
from distreal_edge.device.health import health_of
from distreal_edge.device.report import status_of, update_answer
from distreal_edge.device.residuals import Residuals
from distreal_edge.device.rounds import (
    Action,
    AskForChunks,
    DeviceRounds,
    Forget,
    OfferUpdate,
    Phase,
    Send,
    StopTraining,
    Train,
)
from distreal_edge.device.safe_mode import crashes_counted
from distreal_edge.device.sending import Sending
from distreal_edge.device.spool import Spool
from distreal_edge.device.steps import StepLog
from distreal_edge.device.worker import Worker
from distreal_edge.durable import held_folder
from distreal_edge.errors import DataError, ProtocolError, StateError, TransportError
from distreal_edge.status import StatusSocket
from distreal_edge.transport import (
    Ack,
    BlobTopic,
    Connected,
    DeviceState,
    DeviceTopic,
    Disconnected,
    Manifest,
    Message,
    RoundTopic,
    Session,
    SessionNumbers,
    Topics,
    decode,
    encode,
)
from distreal_edge.words import count_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from distreal_edge.data import Dataset
    from distreal_edge.device.board import Board
    from distreal_edge.device.trainer import MiniBatch
    from distreal_edge.dropout import Profile
    from distreal_edge.pulse import Pulse
    from distreal_edge.status import UpdateAnswer

__all__ = ["DeviceDaemon"]

_log = logging.getLogger(__name__)
_TICK_S = 0.2
_UPLOAD_TICK_S = 0.01
_HEALTH_S = 1.0
_END_S = 0.5


class DeviceDaemon:
    """One device of a federation. `run` serves until it is told to stop."""

    def __init__(
        self,
        *,
        federation: str,
        device: str,
        dataset: Dataset,
        board: Board,
        state: Path,
        version: str,
        broker: dict[str, Any],
        log_steps: bool = False,
        tell: Callable[[str], None] = lambda _status: None,
        pulse: Pulse | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Prepare a device; `broker` holds the `Session`'s connection arguments.

        `tell` is called in every turn of the loop, with one line on what goes on; `pulse` beats while training gets on.
        `profile` is what the federation's table takes on this board.
        """
        if len(dataset) < 2:
            raise DataError(f"device {device} has {count_of(len(dataset), 'image')}; it needs at least 2 to train")
        self._device = device
        self._dataset = dataset
        self._board = board
        self._state = state
        self._version = version
        self._broker = broker
        self._topics = Topics(federation)
        self._log_steps = log_steps
        self._tell = tell
        self._pulse = pulse
        self._profile = profile
        self._latest: MiniBatch | None = None
        self._announced_state = ""
        self._paused: str | None = None
        self._last_answer: UpdateAnswer | None = None
        self._say_end: Callable[[], object] = lambda: None

    def note_end(self) -> None:
        """Note that an end was asked for: what cuts it off then is no crash. May be called from any thread."""
        with suppress(StateError):  # `run` meets it as well
            self._say_end()

    def run(self, stop: threading.Event) -> None:
        """Take part until `stop` is set; may be called again afterwards.

        Raises `TransportError` when the broker refuses us for good, `StateError` when the state folder cannot be used.
        """
        self._stop = stop
        self._announced_state = ""
        with (
            held_folder(self._state),
            StatusSocket(self._state) as self._status_socket,
            crashes_counted(self._state / "crashes.json") as self._safe_mode,
            StepLog(self._state / "steps.csv" if self._log_steps else None) as step_log,
        ):
            self._say_end = self._safe_mode.end
            self._blobs = Blobs(self._state / "blobs")
            self._spool = Spool(self._state / "spool")
            self._residuals = Residuals(self._state / "residuals", waiting=self._spool.waiting())
            self._worker = Worker(
                device=self._device,
                dataset=self._dataset,
                board=self._board,
                spool=self._spool,
                residuals=self._residuals,
                report=lambda step: self._step_done(step, step_log),
                pulse=self._pulse,
                profile=self._profile,
            )
            self._rounds = DeviceRounds(self._device, waiting=self._spool.waiting(), done=self._spool.tasks())
            self._manifest: Manifest | None = None
            self._belonging = Belonging(self._topics)
            self._full_disk = ""
            try:
                with Session(
                    client_id=client_id_of(federation=self._topics.federation, device=self._device),
                    will_topic=self._topics.device_state(self._device),
                    will_payload=self._state_maker("offline"),
                    number=SessionNumbers(self._state / "session"),
                    **self._broker,
                ) as self._session:
                    self._fetching = Fetching(self._session, self._topics, self._device, self._blobs)
                    self._sending = Sending(self._session, self._topics, self._device, self._spool)
                    self._announce_state("starting")
                    self._session.subscribe(
                        self._topics.round,
                        self._topics.ack(self._device),
                        self._topics.device_state(self._device),
                        self._topics.aggregator_states,
                    )
                    try:
                        self._serve()
                    finally:
                        self._worker.stop()  # it has until the broker has heard that we go, and a little longer
                    self._safe_mode.end()
            finally:
                self._worker.join(_END_S)

    def _serve(self) -> None:
        health_due_s = 0.0
        if self._safe_mode.on:
            _log.error("%s", self._safe_mode.explanation)
        while not self._stop.is_set():
            self._tell(self._status())
            self._take_event()
            while not self._worker.finished.empty():
                ended = self._worker.finished.get()
                if ended.uid is None:
                    _log.warning("round %d: no update: %s", ended.round_number, ended.reason)
                self._act(self._rounds.trained(ended.uid, time.time()))
                self._begin_when_complete()
            self._act(self._rounds.tick(time.time()))
            self._fetching.serve(wanting=self._rounds.fetching)
            self._advance_sending()
            self._belonging.check(time.monotonic())
            self._announce_state("degraded" if self._safe_mode.on else self._rounds.phase.value)
            if time.monotonic() >= health_due_s:
                health_due_s = time.monotonic() + _HEALTH_S
                self._publish_health()
                self._leave_safe_mode_when_over()

    # -- what happens ------------------------------------------------------------------------------------------------

    def _take_event(self) -> None:
        try:
            event = self._session.events.get(timeout=_UPLOAD_TICK_S if self._sending.busy else _TICK_S)
        except queue.Empty:
            return
        match event:
            case Message():
                self._message(event)
            case Connected():
                self._act(self._rounds.connected(time.time()))
            case Disconnected(reason, final):
                if final:
                    raise TransportError(reason)
                self._sending.cut_off()
                self._rounds.disconnected()

    def _message(self, message: Message) -> None:
        now = time.time()
        if self._topics.is_aggregator_state(message.topic):
            self._belonging.heard(message.topic, message.payload, time.monotonic())
            return
        try:
            match self._topics.parse(message.topic):
                case RoundTopic():
                    manifest = decode(Manifest, message.payload, where=message.topic)
                    news = manifest != self._manifest
                    self._heed(manifest, now, live=not message.retained)
                    self._manifest = manifest
                    self._session.clients = manifest.devices or len(manifest.selected) or self._session.clients
                    if news and not message.retained:  # what the broker kept may be as old as it likes
                        self._warn_when_late(manifest, now)
                case BlobTopic(digest):
                    if self._blobs.add(digest, message.payload, message.topic):
                        self._rounds.chunk_arrived(now)
                    self._full_disk = ""
                case DeviceTopic(kind="ack"):
                    ack = decode(Ack, message.payload, where=message.topic)
                    self._last_answer = update_answer(ack, now)
                    if ack.kind != "resend":
                        self._residuals.settle(ack.uid, counted=ack.kind == "durable")
                    actions = self._rounds.acknowledged(ack, now)
                    if ack.kind == "refused" and actions:  # else it was said before
                        _log.warning("update %s was refused: %s", ack.uid, ack.reason)
                    self._act(actions)
                case DeviceTopic(kind="state") if not message.retained:
                    if decode(DeviceState, message.payload, where=message.topic).state == "offline":
                        # The will of a connection that is over came late, and hides that we are here.
                        self._session.republish(message.topic)
        except ProtocolError as error:
            _log.warning("ignored: %s", error)
        except StateError as error:
            # Once, not for every chunk; it is asked for again, and perhaps somebody has made room by then.
            if str(error) != self._full_disk:
                self._full_disk = str(error)
                _log.error("%s", error)
        self._begin_when_complete()

    def _heed(self, manifest: Manifest, now: float, *, live: bool) -> None:
        if self._safe_mode.on:
            # As if it were for others: what waits in the spool is sent as ever, and nothing is trained.
            manifest = msgspec.structs.replace(manifest, selected=())
        else:
            self._blobs.expect(manifest)
        self._act(self._rounds.announced(manifest, now, live=live))

    def _leave_safe_mode_when_over(self) -> None:
        if not self._safe_mode.over():
            return
        _log.info("safe mode is over")
        if self._manifest is not None:
            try:
                self._heed(self._manifest, time.time(), live=False)
            except ProtocolError as error:
                _log.warning("ignored: %s", error)

    def _warn_when_late(self, manifest: Manifest, now: float) -> None:
        # The aggregator announces a round as it opens it: this is an old round, or one of the two clocks is wrong.
        if self._device in manifest.selected and not manifest.finished and now >= manifest.train_until_s:
            _log.warning(
                "round %d: its time for training ended %.0f s ago; if this goes on, set the clocks right",
                manifest.number,
                now - manifest.train_until_s,
            )

    def _begin_when_complete(self) -> None:
        if self._blobs.complete:
            self._act(self._rounds.blobs_complete(time.time()))

    def _step_done(self, step: MiniBatch, step_log: StepLog) -> None:
        """Take note of a mini-batch, in the trainer's thread."""
        self._latest = step
        step_log.write(step)

    # -- what to do --------------------------------------------------------------------------------------------------

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case AskForChunks():
                    self._fetching.ask_again()
                case Train(manifest):
                    _log.info(
                        "round %d: training until %.1f s from now, rows up to %.0f %% of the network",
                        manifest.number,
                        manifest.train_until_s - time.time(),
                        100 * manifest.ceiling,
                    )
                    self._train(manifest)
                case StopTraining():
                    self._worker.stop()
                case OfferUpdate(uid):
                    if not self._sending.offer(uid):
                        self._act(self._rounds.lost(uid, time.time()))
                case Send(uid, missing):
                    self._sending.ask(uid, missing)
                case Forget(uid):
                    self._sending.forget(uid)
                    self._residuals.settle(uid, counted=None)  # unless an answer has said it
                    self._spool.remove(uid)

    def _train(self, manifest: Manifest) -> None:
        self._latest = None
        try:
            model, table = self._blobs.data(manifest.model), self._blobs.data(manifest.table)
        except StateError as error:
            _log.error("round %d: not trained: %s", manifest.number, error)
            self._act(self._rounds.trained(None, time.time()))
            return
        self._worker.start(manifest, model, table)

    def _advance_sending(self) -> None:
        ended = self._sending.advance()
        if ended is not None:
            uid, whole = ended
            (self._rounds.sent if whole else self._rounds.sending_failed)(uid, time.time())

    def _status(self) -> str:
        """Return what goes on, in a line for a person."""
        if self._safe_mode.on:
            what = self._safe_mode.explanation
        elif self._manifest is None:
            what = self._rounds.phase.value
        elif self._manifest.finished:
            what = f"{self._rounds.phase.value}, the training is over"
        else:
            what = f"{self._rounds.phase.value}, round {self._manifest.number}"
        if self._paused is not None:
            what = f"{what}; training pauses: {self._paused}"
        return what if self._session.connected else f"{what}; no connection to the broker"

    def _announce_state(self, state: str) -> None:
        # Fetching is a part of waiting, as the others see it.
        told = {"fetching": "idle"}.get(state, state)
        if told != self._announced_state:
            self._announced_state = told
            _log.info("%s", told)
            self._session.publish_retained(self._topics.device_state(self._device), self._state_maker(told))

    def _state_maker(self, told: str) -> Callable[[int], bytes]:
        """Return what makes our state for a connection's number."""
        return lambda number: encode(
            DeviceState(told, number, len(self._dataset), self._version)  # type: ignore[arg-type]
        )

    def _publish_health(self) -> None:
        availability = self._board.availability()
        self._paused = availability.paused
        training = self._rounds.phase is Phase.TRAINING
        health = health_of(time.time(), availability, len(self._spool.waiting()), self._latest, training=training)
        self._session.publish_retained(self._topics.device_health(self._device), encode(health), qos=0)
        self._status_socket.tell(
            status_of(
                availability,
                health,
                federation=self._topics.federation,
                device=self._device,
                state="degraded" if self._safe_mode.on else self._rounds.phase.value,
                doing=self._status(),
                connected=self._session.connected,
                images=len(self._dataset),
                announced=None if self._manifest is None else self._manifest.number,
                last_answer=self._last_answer,
                safe_mode=self._safe_mode.explanation if self._safe_mode.on else None,
            )
        )


def client_id_of(*, federation: str, device: str) -> str:
    """Return the id that a device has at its broker.

    Federations that share a broker may have devices of one name, which must not take each other's place there.
    """
    whole = hashlib.sha256(f"{federation}/{device}".encode()).hexdigest()
    return f"{device[:47]}-{whole[:16]}"
