"""The thread that trains: one round after the other, beside the thread that talks to the broker."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from distreal_edge.device.measuring import measure_speed, wait_while_paused
from distreal_edge.device.pace import Speed
from distreal_edge.device.rounds import task_of
from distreal_edge.device.trainer import MiniBatch, train_round
from distreal_edge.dropout import Table, check_policy
from distreal_edge.engine import Cancellation
from distreal_edge.errors import CancellationError, DistrealError, StateError, TableError
from distreal_edge.network import Network
from distreal_edge.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.data import Dataset
    from distreal_edge.device.board import Board
    from distreal_edge.device.residuals import Residuals
    from distreal_edge.device.spool import Spool
    from distreal_edge.device.update import Update
    from distreal_edge.dropout import Profile
    from distreal_edge.network import Plan
    from distreal_edge.transport import Manifest

__all__ = ["Finished", "Worker"]

_log = logging.getLogger(__name__)
_ROOM_S = 2.0
"""How often a full disk is tried again."""
_MEASURING_SHARE = 0.1
"""Of the first round's training time; measuring the cheapest row may take longer."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a round's training ended: with an update in the spool, or, when `uid` is None, for this `reason`."""

    round_number: int
    uid: str | None
    reason: str = ""


class Worker:
    """Train rounds in a thread of its own, and put their updates into the spool.

    What ended is found in `finished`; `report` is called in the thread after every mini-batch.
    """

    def __init__(
        self,
        *,
        device: str,
        dataset: Dataset,
        board: Board,
        spool: Spool,
        residuals: Residuals,
        report: Callable[[MiniBatch], None],
        pulse: Pulse | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Prepare a worker; nothing runs yet.

        `pulse` beats while it gets on; `profile` is what one table takes on this board.
        """
        self.finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._device = device
        self._dataset = dataset
        self._board = board
        self._spool = spool
        self._residuals = residuals
        self._report = report
        self._pulse = Pulse() if pulse is None else pulse
        self._profile = profile
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._cancellation = Cancellation()
        self._speeds: dict[str, Speed] = {}

    def start(self, manifest: Manifest, model: bytes, table: bytes) -> None:
        """Start a round; the one before must have ended."""
        self._stop = threading.Event()
        self._cancellation = Cancellation()
        # No daemon thread: native code that comes back into an interpreter that is being torn down aborts the process.
        self._thread = threading.Thread(
            target=self._run,
            args=(manifest, model, table, self._stop, self._cancellation),
            name="trainer",
            daemon=False,
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop in the middle of the mini-batch at hand, and throw away what was trained."""
        self._stop.set()
        self._cancellation.cancel()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, at most so long."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(
        self, manifest: Manifest, model: bytes, table: bytes, stop: threading.Event, cancellation: Cancellation
    ) -> None:
        with self._pulse.working():
            try:
                uid = self._train(manifest, model, table, stop, cancellation)
                outcome = Finished(manifest.number, uid, "" if uid else "stopped")
            except DistrealError as error:
                outcome = Finished(manifest.number, None, str(error))
            # The outermost loop of this thread: the daemon must hear of it and go on. A panic in a library written in
            # Rust is no Exception.
            except BaseException as error:  # noqa: BLE001
                _log.exception("round %d: training failed", manifest.number)
                outcome = Finished(manifest.number, None, f"{type(error).__name__}: {error}")
        self.finished.put(outcome)

    def _train(
        self, manifest: Manifest, model: bytes, table: bytes, stop: threading.Event, cancellation: Cancellation
    ) -> str | None:
        check_policy(manifest.draw)
        network = Network.from_bytes(model, "the round's model")
        rows = Table.from_bytes(table, "the round's table")
        rows.check_network(network.structure, network.plan.sizes)
        uid = secrets.token_hex(16)

        def stopped() -> bool:
            # Asked before every mini-batch, and over and over in a wait.
            self._pulse.beat()
            return stop.is_set()

        try:
            if not wait_while_paused(self._board, manifest.train_until_s, stopped):
                return None
            update = self._update(manifest, network, rows, uid, stopped, cancellation)
        except CancellationError:
            return None
        if stop.is_set():
            return None
        self._store(update, manifest, network.plan, stopped)
        return uid

    def _store(self, update: Update, manifest: Manifest, plan: Plan, stopped: Callable[[], bool]) -> None:
        """Put an update into the spool, as the round asks for it."""
        uid, settings = update.header.uid, manifest.training
        data = self._residuals.encode(update, plan, settings.encoding, settings.compression)
        try:
            self._add(uid, manifest, data, stopped)
        except StateError:
            if self._spool.path(uid) is None:
                self._residuals.settle(uid, counted=False)
            raise

    def _add(self, uid: str, manifest: Manifest, data: bytes, stopped: Callable[[], bool]) -> None:
        """Store an update, and note that; when the disk is full wait for room for as long as the round is open."""
        added = told = False
        while True:
            try:
                if not added:
                    self._spool.add(uid, task_of(manifest), data)
                added = True
                self._residuals.stored(uid)
            except StateError as error:
                half = not added and self._spool.path(uid) is not None
                over = half or self._board.now() >= manifest.deadline_s or stopped()
                if over:
                    raise
                if not told:
                    _log.error("round %d: %s; tried again until the round closes", manifest.number, error)
                told = True
                self._board.wait_until(self._board.now() + _ROOM_S, stopped)
            else:
                return

    def _update(
        self,
        manifest: Manifest,
        network: Network,
        table: Table,
        uid: str,
        stopped: Callable[[], bool],
        cancellation: Cancellation,
    ) -> Update:
        return train_round(
            manifest=manifest,
            network=network,
            table=table,
            dataset=self._dataset,
            device=self._device,
            uid=uid,
            board=self._board,
            speed=self._speed(manifest, network, table, cancellation),
            stopped=stopped,
            report=self._report,
            cancellation=cancellation,
        )

    def _speed(self, manifest: Manifest, network: Network, table: Table, cancellation: Cancellation) -> Speed:
        # What was learned about this board's speed holds for as long as the table does.
        digest = manifest.table.digest
        if digest not in self._speeds:
            speed = self._profiled(manifest, table)
            self._speeds = {digest: speed or self._measured(manifest, network, table, cancellation)}
        return self._speeds[digest]

    def _profiled(self, manifest: Manifest, table: Table) -> Speed | None:
        if self._profile is None:
            return None
        try:
            return Speed(msgspec.structs.replace(table, profile=self._profile))
        except TableError as error:
            _log.warning("round %d: %s; two of its rows are measured instead", manifest.number, error)
            return None

    def _measured(self, manifest: Manifest, network: Network, table: Table, cancellation: Cancellation) -> Speed:
        until_s = self._board.now() + _MEASURING_SHARE * (manifest.train_until_s - self._board.now())
        batch = manifest.training.batch
        measured = measure_speed(network, table, self._dataset, self._board, batch, until_s, cancellation)
        shown = ", ".join(f"{seconds:.3g} s with row {row}" for row, seconds in measured.items())
        _log.info("an image takes one core of this board %s", shown)
        return Speed(table, measured)
