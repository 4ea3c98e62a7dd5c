"""Train one round on one device, and make the update of it.

No sockets, no clock of its own: the board tells the time, the availability and how long work took.
"""

from __future__ import annotations

import logging
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.data import Batches
from distreal_edge.device.measuring import measure_statistics
from distreal_edge.device.pace import Pace, Pause, RoundPlan
from distreal_edge.device.update import SurvivorLog, Update, UpdateHeader
from distreal_edge.dropout import Draws, filter_counts
from distreal_edge.engine import Cancellation, Engine
from distreal_edge.errors import CancellationError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset
    from distreal_edge.device.board import Availability, Board, Ran
    from distreal_edge.device.pace import Choice, PaceMaker, Speed
    from distreal_edge.dropout import Subset, Table
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest

__all__ = ["MiniBatch", "round_seed", "train_round"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """What one mini-batch was and took: a line of `steps.csv`.

    `time_s` is when it was decided, `cores` what was free then, `share` the row's MACs over the full network's.
    """

    time_s: float
    round: int
    mini_batch: int
    cores: float
    row: int
    share: float
    threads: int
    predicted_s: float
    seconds: float
    loss: float
    images: int


def round_seed(manifest: Manifest, device: str) -> tuple[int, int, int]:
    """Return what seeds a device's randomness in a round: different for every federation, round and device."""
    return (manifest.seed, manifest.number, zlib.crc32(device.encode()))


def train_round(
    *,
    manifest: Manifest,
    network: Network,
    table: Table,
    dataset: Dataset,
    device: str,
    uid: str,
    board: Board,
    speed: Speed,
    stopped: Callable[[], bool],
    report: Callable[[MiniBatch], None],
    cancellation: Cancellation | None = None,
    make_pace: PaceMaker = Pace,
) -> Update:
    """Train until the round's work is done, its time is over or `stopped()`, and return the update.

    `report` is called after every mini-batch. The network itself is left as it is. A mini-batch that is not finished by
    the end of the training time, or when somebody cancels, is thrown away, and what was trained before it stays.
    Training that diverges is thrown away as a whole: what comes back then holds the statistics only, and no images.
    Raises `CancellationError` when the statistics are not measured by then.
    `make_pace` makes what chooses rows, of the same arguments as a `Pace`.
    """
    cancellation = Cancellation() if cancellation is None else cancellation
    training = _Training(manifest, network, table, dataset, device, board)
    with board.call_at(manifest.train_until_s, cancellation.cancel):
        statistics, statistics_images = measure_statistics(
            training.engine, network.plan, dataset, manifest, board, stopped, cancellation
        )
        pace = make_pace(table, speed, **_plan(manifest, network, table, len(dataset), training.batch))
        while not manifest.measure_only and not stopped():
            time_s = board.now()
            availability = board.availability()
            choice = pace.choose(time_s, availability)
            if choice is None:
                break
            if isinstance(choice, Pause):
                board.wait_until(time_s + choice.seconds, stopped)
                continue
            ran = training.run(choice, time_s, stopped, cancellation)
            if ran is None:
                break
            pace.finished(choice, ran.seconds, ran.core_seconds)
            report(training.describe(choice, ran, time_s, availability))
            if not math.isfinite(ran.result):
                break
    changes, kept, kept_images = training.finish()
    header = UpdateHeader(
        uid=uid,
        device=device,
        round=manifest.number,
        model=manifest.model.digest,
        images=training.images,
        mini_batches=training.mini_batches,
        macs=training.macs,
        loss=training.loss_sum / training.images if training.images else None,
        statistics_images=statistics_images,
    )
    return Update(header, changes, statistics, kept, kept_images)


class _Training:
    """A round's training so far, one mini-batch after the other, and the sums that go into its update."""

    def __init__(
        self, manifest: Manifest, network: Network, table: Table, dataset: Dataset, device: str, board: Board
    ) -> None:
        seed = round_seed(manifest, device)
        self.engine = Engine(network, seed=seed)
        self.images = self.mini_batches = self.macs = 0
        self.loss_sum = 0.0
        self._manifest = manifest
        self._network = network
        self._table = table
        self._board = board
        self._draws = Draws(manifest.draw, network.plan.sizes, seed, manifest.number)
        self._batches = Batches(dataset, manifest.training.batch, np.random.default_rng(seed))
        self._survivors = SurvivorLog(network.plan)

    @property
    def batch(self) -> int:
        """The images of a mini-batch: no more than the device has."""
        return self._batches.batch_size

    def run(self, choice: Choice, time_s: float, stopped: Callable[[], bool], cancellation: Cancellation) -> Ran | None:
        """Train a mini-batch; None when there is no room for it in an update, or when it was not finished in time."""
        row = self._table.rows[choice.row]
        subset = self._draws(filter_counts(row.vector, self._network.plan.sizes))
        if not self._survivors.has_room(subset):
            _log.info("round %d: stops early: an update tells of no more different subsets", self._manifest.number)
            return None
        before = self._copy() if self._board.emulated else {}
        images, labels = next(self._batches)
        try:
            ran = self._step(images, labels, subset, choice.threads, row.macs * len(images), cancellation)
        except CancellationError:
            return None
        ends_s = time_s + ran.seconds
        # An emulated board whose cores went away is waited for until the round's training ends, and no longer.
        self._board.wait_until(min(ends_s, self._manifest.train_until_s), stopped)
        if self._board.emulated and ends_s > self._manifest.train_until_s:
            for name, tensor in before.items():
                self.engine.weights[name][...] = tensor
            return None
        self._survivors.add(subset, len(images))
        self.mini_batches += 1
        self.images += len(images)
        self.macs += row.macs * len(images)
        self.loss_sum += ran.result * len(images)
        return ran

    def describe(self, choice: Choice, ran: Ran, time_s: float, availability: Availability) -> MiniBatch:
        """Return the mini-batch that was just trained as a line of `steps.csv`."""
        rows = self._table.rows
        return MiniBatch(
            time_s=time_s,
            round=self._manifest.number,
            mini_batch=self.mini_batches,
            cores=availability.cores,
            row=choice.row,
            share=rows[choice.row].macs / rows[-1].macs,
            threads=choice.threads,
            predicted_s=choice.predicted_s,
            seconds=ran.seconds,
            loss=ran.result,
            images=self.batch,
        )

    def finish(self) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_], NDArray[np.int64]]:
        """Return the changes of all parameters, and who survived how often; nothing of what diverged."""
        parameters = self._network.plan.parameters
        changes = {name: self.engine.weights[name] - self._network.weights[name] for name in parameters}
        if not (math.isfinite(self.loss_sum) and all(np.isfinite(change).all() for change in changes.values())):
            _log.warning(
                "round %d: training diverged within %s and is thrown away; a smaller learning rate may help",
                self._manifest.number,
                count_of(self.mini_batches, "mini-batch", "mini-batches"),
            )
            self._survivors = SurvivorLog(self._network.plan)
            self.images = self.mini_batches = self.macs = 0
            changes = {name: np.zeros_like(change) for name, change in changes.items()}
        return changes, *self._survivors.arrays()

    def _step(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        subset: Subset,
        threads: int,
        macs: int,
        cancellation: Cancellation,
    ) -> Ran:
        settings = self._manifest.training
        return self._board.run(
            lambda threads: self.engine.step(
                images,
                labels,
                subset,
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                threads=threads,
                cancellation=cancellation,
            ),
            threads,
            macs,
        )

    def _copy(self) -> dict[str, NDArray[np.float32]]:
        return {name: self.engine.weights[name].copy() for name in self._network.plan.parameters}


def _plan(manifest: Manifest, network: Network, table: Table, images: int, batch: int) -> RoundPlan:
    """Return what is to be done in a round over so many images: whole mini-batches, at least one."""
    settings = manifest.training
    memory = None
    if batch != table.batch:
        memory = [network.cost(row.vector, batch).peak_bytes for row in table.rows]
    return RoundPlan(
        ceiling=manifest.ceiling,
        planned=max(1, round(settings.epochs * images / batch)),
        most=round(settings.most_epochs * images / batch),
        images=batch,
        train_until_s=manifest.train_until_s,
        peak_bytes=memory,
    )
