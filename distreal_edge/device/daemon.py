"""The program around a device: it carries events from the broker and the trainer to the state machine, and acts."""

from __future__ import annotations

import csv
import dataclasses
import logging
import queue
import secrets
import time
from typing import TYPE_CHECKING, Any, Self

from distreal_edge.device.blobs import Blobs
from distreal_edge.device.rounds import (
    Action,
    AskForChunks,
    DeviceRounds,
    Forget,
    Send,
    StopTraining,
    Train,
)
from distreal_edge.device.spool import Spool
from distreal_edge.device.trainer import MiniBatch
from distreal_edge.device.worker import Worker
from distreal_edge.durable import held_folder
from distreal_edge.errors import DataError, ProtocolError, TransportError
from distreal_edge.transport import (
    Ack,
    BlobTopic,
    Connected,
    DeviceHealth,
    DeviceState,
    DeviceTopic,
    Disconnected,
    FrameReader,
    Manifest,
    Message,
    RoundTopic,
    Session,
    Topics,
    decode,
    encode,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable
    from pathlib import Path

    from distreal_edge.data import Dataset
    from distreal_edge.device.board import Board

__all__ = ["DeviceDaemon"]

_log = logging.getLogger(__name__)
_TICK_S = 0.2
_HEALTH_S = 1.0
_END_S = 2.0


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
    ) -> None:
        """Prepare a device; `broker` holds the `Session`'s connection arguments."""
        if len(dataset) < 2:
            raise DataError(f"device {device} has {len(dataset)} images; it needs at least 2 to train")
        self._device = device
        self._dataset = dataset
        self._board = board
        self._state = state
        self._version = version
        self._broker = broker
        self._topics = Topics(federation)
        self._session_id = secrets.token_hex(8)
        self._log_steps = log_steps
        self._latest: MiniBatch | None = None
        self._mini_batches = 0
        self._images_per_s = 0.0
        self._announced_state = ""

    def run(self, stop: threading.Event) -> None:
        """Take part until `stop` is set. Raises `TransportError` when the broker refuses us for good."""
        offline = encode(DeviceState("offline", self._session_id, len(self._dataset), self._version))
        with (
            held_folder(self._state),
            _StepLog(self._state / "steps.csv" if self._log_steps else None) as step_log,
            Session(
                client_id=self._device,
                will_topic=self._topics.device_state(self._device),
                will_payload=offline,
                **self._broker,
            ) as session,
        ):
            self._session = session
            self._stop = stop
            self._blobs = Blobs()
            self._spool = Spool(self._state / "spool")
            self._worker = Worker(
                device=self._device,
                dataset=self._dataset,
                board=self._board,
                spool=self._spool,
                report=lambda step: self._step_done(step, step_log),
            )
            self._rounds = DeviceRounds(
                self._device, waiting=self._spool.waiting(), answered_round=self._spool.newest_round()
            )
            self._announce_state("starting")
            session.subscribe(self._topics.round, self._topics.ack(self._device), f"{self._topics.prefix}blob/+/+")
            self._serve()

    def _serve(self) -> None:
        health_due_s = 0.0
        while not self._stop.is_set():
            try:
                event = self._session.events.get(timeout=_TICK_S)
            except queue.Empty:
                pass
            else:
                match event:
                    case Message():
                        self._message(event)
                    case Connected():
                        self._act(self._rounds.connected(time.time()))
                    case Disconnected(reason, final=True):
                        raise TransportError(reason)
            while not self._worker.finished.empty():
                ended = self._worker.finished.get()
                if ended.uid is None:
                    _log.warning("round %d: no update: %s", ended.round_number, ended.reason)
                self._act(self._rounds.trained(ended.uid, ended.round_number, time.time()))
                self._begin_when_complete()
            self._act(self._rounds.tick(time.time()))
            self._announce_state(self._rounds.phase.value)
            if time.monotonic() >= health_due_s:
                health_due_s = time.monotonic() + _HEALTH_S
                self._publish_health()
        self._worker.stop()
        self._worker.join(_END_S)

    def _message(self, message: Message) -> None:
        now = time.time()
        try:
            match self._topics.parse(message.topic):
                case RoundTopic():
                    manifest = decode(Manifest, message.payload, where=message.topic)
                    self._blobs.expect(manifest)
                    self._act(self._rounds.announced(manifest, now))
                case BlobTopic(digest):
                    if self._blobs.add(digest, message.payload, message.topic):
                        self._act(self._rounds.chunk_arrived(now))
                case DeviceTopic(kind="ack"):
                    ack = decode(Ack, message.payload, where=message.topic)
                    if ack.kind == "refused":
                        _log.warning("update %s was refused: %s", ack.uid, ack.reason)
                    self._act(self._rounds.acknowledged(ack, now))
        except ProtocolError as error:
            _log.warning("ignored: %s", error)
        self._begin_when_complete()

    def _begin_when_complete(self) -> None:
        if self._blobs.complete:
            self._act(self._rounds.blobs_complete(time.time()))

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case AskForChunks():
                    for want in self._blobs.wanted():
                        self._session.publish(self._topics.want(self._device), encode(want))
                case Train(manifest):
                    _log.info(
                        "round %d: training until %.1f s from now, rows up to %.0f %% of the network",
                        manifest.number,
                        manifest.train_until_s - time.time(),
                        100 * manifest.ceiling,
                    )
                    self._mini_batches = 0
                    self._worker.start(manifest, self._blobs.data(manifest.model), self._blobs.data(manifest.table))
                case StopTraining():
                    self._worker.stop()
                case Send(uid, missing):
                    self._send(uid, missing)
                case Forget(uid):
                    self._spool.remove(uid)

    def _send(self, uid: str, missing: tuple[int, ...]) -> None:
        path = self._spool.path(uid)
        if path is None or not self._session.connected:
            self._rounds.sending_failed()
            return
        self._announce_state("uploading")
        try:
            reader = FrameReader(path)
            self._session.send_frames(
                lambda index: self._topics.update(self._device, uid, index),
                reader.frames(missing or None),
                stop=self._stop,
            )
        except TransportError as error:
            _log.warning("update %s was not sent whole: %s", uid, error)
            self._rounds.sending_failed()

    def _step_done(self, step: MiniBatch, step_log: _StepLog) -> None:
        self._latest = step
        self._mini_batches = step.mini_batch
        self._images_per_s = step.images / step.seconds if step.seconds > 0 else 0.0
        step_log.write(step)

    def _announce_state(self, state: str) -> None:
        # Fetching is a part of waiting, as the others see it.
        told = {"fetching": "idle"}.get(state, state)
        if told != self._announced_state:
            self._announced_state = told
            _log.info("%s", told)
            payload = {"state": told, "session": self._session_id, "images": len(self._dataset)}
            self._session.publish_retained(
                self._topics.device_state(self._device),
                encode(DeviceState(**payload, version=self._version)),  # type: ignore[arg-type]
            )

    def _publish_health(self) -> None:
        availability = self._board.availability()
        training = self._rounds.phase.value == "training"
        step = self._latest if training else None
        health = DeviceHealth(
            time_s=time.time(),
            cores=availability.cores,
            memory_bytes=int(availability.memory_bytes or 0),
            temperature_c=None,
            row=step.row if step else None,
            threads=step.threads if step else 0,
            images_per_s=self._images_per_s if step else 0.0,
            spool=len(self._spool.waiting()),
            round=step.round if step else None,
            mini_batches=self._mini_batches,
            loss=step.loss if step and abs(step.loss) < 1e38 else None,
            vector_macs_share=step.share if step else None,
        )
        self._session.publish_retained(self._topics.device_health(self._device), encode(health), qos=0)


class _StepLog:
    """`steps.csv`: one line per mini-batch, or nothing when no file is wanted."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> Self:
        if self._path is not None:
            new = not self._path.exists()
            self._file = self._path.open("a", newline="", encoding="utf-8", buffering=1)
            self._writer = csv.writer(self._file)
            if new:
                self._writer.writerow([field.name for field in dataclasses.fields(MiniBatch)])
        return self

    def __exit__(self, *error: object) -> None:
        if self._path is not None:
            self._file.close()

    def write(self, step: MiniBatch) -> None:
        """Append a line."""
        if self._path is not None:
            self._writer.writerow(dataclasses.astuple(step))
