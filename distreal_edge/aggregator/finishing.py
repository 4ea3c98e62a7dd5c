"""A closed round averaged, evaluated and stored, beside the loop that goes on listening."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from distreal_edge.aggregator.closing import average_round, judge_round, record_round
from distreal_edge.aggregator.restoring import keep_files, sound_updates
from distreal_edge.errors import FullDiskError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from distreal_edge.aggregator.averaging import AverageRule
    from distreal_edge.aggregator.closing import Closed, Judged
    from distreal_edge.aggregator.evaluation import HeldOut, Part
    from distreal_edge.aggregator.ledger import StoredUpdate
    from distreal_edge.aggregator.rounds import Open
    from distreal_edge.aggregator.store import Store
    from distreal_edge.device import UpdateReader
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest

__all__ = ["ROOM_S", "Finishing", "Made"]

ROOM_S: Final = 2.0
"""How often a full disk is tried again."""


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What became of a round: its model and record, the files that hold them, and updates that were damaged."""

    closed: Closed
    files: Mapping[str, tuple[int, str]]
    lost: tuple[StoredUpdate, ...]
    metrics: Mapping[str, float]


class _AbandonedError(Exception):
    """Nobody waits for the result any more."""


@dataclass(slots=True, eq=False)
class Finishing:
    """One round's work, in a thread of its own; `phase` is what it is at, as `AggregatorHealth` has it.

    `trouble` is why it waits for room on the disk, if it does.

    No round is open meanwhile: what comes from devices is late, and is told so at once rather than once this is over.
    """

    opened: Open
    manifest: Manifest
    network: Network
    updates: tuple[StoredUpdate, ...]
    store: Store
    average: AverageRule
    held_out: HeldOut
    closed_s: float
    part: Part | None = None
    phase: str = "averaging"
    trouble: str = ""
    _made: Made | None = None
    _error: BaseException | None = None
    _abandoned: threading.Event = field(default_factory=threading.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        # No daemon thread: native code that comes back into an interpreter that is being torn down aborts the process.
        self._thread = threading.Thread(target=self._run, name="closing", daemon=False)
        self._thread.start()

    def result(self, timeout_s: float = 0.0) -> Made | None:
        """Return what became of the round, or None when it is not done after `timeout_s`; raise what stopped it."""
        assert self._thread is not None
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        return self._made

    def abandon(self) -> None:
        """Write nothing from now on: another run may use the folder, and take in more of the same round."""
        with self._writing:
            self._abandoned.set()

    def _run(self) -> None:
        try:
            self._made = self._work()
        except _AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 - the outermost loop of this thread: `result` raises it
            self._error = error

    def _work(self) -> Made:
        lost: list[StoredUpdate] = []
        began_s = time.monotonic()
        averaged = average_round(self.network, self._sound(lost), self.average)
        averaged_s = time.monotonic()
        self.phase = "evaluating"
        judged = judge_round(self.opened, averaged, self.held_out, self.part)
        judged_s = time.monotonic()
        closed = record_round(self.opened, self.manifest, averaged, judged, closed_s=self.closed_s)
        files = self._kept(judged, closed)
        record = closed.record
        measured = {
            "open_s": self.closed_s - self.opened.opened_s,
            "averaging_s": averaged_s - began_s,
            "evaluating_s": judged_s - averaged_s,
            "storing_s": time.monotonic() - judged_s,
            "answered": len(record.answered),
            "images": record.images,
            "mini_batches": record.mini_batches,
            "macs": record.macs,
            "training_loss": record.training_loss,
            "accuracy": record.accuracy,
            "loss": record.loss,
        }
        metrics = {name: float(value) for name, value in measured.items() if value is not None}
        return Made(closed, files, tuple(lost), metrics)

    def _kept(self, judged: Judged | None, closed: Closed) -> dict[str, tuple[int, str]]:
        """Store the models; as long as the disk has no room for them they are kept in memory."""
        while True:
            try:
                with self._writing:
                    if self._abandoned.is_set():
                        raise _AbandonedError
                    return keep_files(self.store, judged, closed)
            except FullDiskError as error:
                self.trouble = str(error)
            self._abandoned.wait(ROOM_S)
            self.trouble = ""

    def _sound(self, lost: list[StoredUpdate]) -> Iterator[UpdateReader]:
        updates: Iterable[UpdateReader] = sound_updates(self.store, self.updates, self.network.plan, lost)
        for update in updates:
            if self._abandoned.is_set():
                raise _AbandonedError
            yield update
