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
from distreal_edge.device.pace import Pace, Pause, Speed
from distreal_edge.device.update import SurvivorLog, Update, UpdateHeader
from distreal_edge.dropout import Draws, filter_counts
from distreal_edge.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset
    from distreal_edge.device.board import Board
    from distreal_edge.dropout import Table
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest

__all__ = ["MiniBatch", "measure_speed", "round_seed", "train_round"]

_log = logging.getLogger(__name__)
_STATISTICS_BATCH = 32
_STATISTICS_SHARE = 0.25
_MEASURED_STEPS = 2


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


def measure_speed(
    network: Network, table: Table, dataset: Dataset, board: Board, batch: int, until_s: float
) -> dict[int, float]:
    """Return the seconds that one core of this board takes per image with some of the table's rows.

    Trains a copy of the network for a few mini-batches of each; the first, which only warms caches up, is not counted.
    The cheapest row is always measured, the widest one as well unless that would last beyond `until_s`.
    """
    engine = Engine(network)
    batches = Batches(dataset, batch, np.random.default_rng(0))
    measured: dict[int, float] = {}
    began_s = board.now()
    for number in dict.fromkeys((0, len(table.rows) - 1)):
        row = table.rows[number]
        if measured and began_s + (board.now() - began_s) * row.macs / table.rows[0].macs > until_s:
            break
        subset = network.draw(row.vector, np.random.default_rng(0))
        least = math.inf
        for _ in range(1 + _MEASURED_STEPS):
            images, labels = next(batches)
            ran = board.run(lambda threads: engine.step(images, labels, subset, lr=1e-6, threads=threads), 1)  # noqa: B023
            least = min(least, ran.core_seconds / len(images))
        measured[number] = least
    return measured


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
) -> Update:
    """Train until the round's work is done, its time is over or `stopped()`, and return the update.

    `report` is called after every mini-batch. The network itself is left as it is. Training that diverges is thrown
    away: what comes back then holds the statistics only, and no images.
    """
    settings = manifest.training
    seed = round_seed(manifest, device)
    engine = Engine(network, seed=seed)
    draws = Draws(manifest.draw, network.plan.sizes, seed, manifest.number)
    batches = Batches(dataset, settings.batch, np.random.default_rng(seed))
    statistics, statistics_images = _measure(engine, network, dataset, manifest, board, stopped)
    pace = _pace(manifest, network, table, len(dataset), batches.batch_size, speed)
    survivors = SurvivorLog(network.plan)
    images_done = mini_batches = macs = 0
    loss_sum = 0.0
    while not manifest.measure_only and not stopped():
        time_s = board.now()
        availability = board.availability()
        choice = pace.choose(time_s, availability)
        if choice is None:
            break
        if isinstance(choice, Pause):
            board.wait_until(time_s + choice.seconds, stopped)
            continue
        row = table.rows[choice.row]
        subset = draws(filter_counts(row.vector, network.plan.sizes))
        if not survivors.has_room(subset):
            _log.info("round %d: stops early: an update tells of no more different subsets", manifest.number)
            break
        images, labels = next(batches)
        ran = board.run(
            lambda threads: engine.step(
                images,  # noqa: B023 - run is done before the next turn
                labels,  # noqa: B023
                subset,  # noqa: B023
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                threads=threads,
            ),
            choice.threads,
        )
        # An emulated board whose cores went away is waited for until the round's training ends, and no longer: a real
        # one always has some crumbs, and its mini-batch would end some time.
        ends_s = time_s + ran.seconds
        board.wait_until(min(ends_s, manifest.train_until_s), stopped)
        pace.finished(choice, ran.seconds, ran.core_seconds)
        survivors.add(subset, len(images))
        mini_batches += 1
        images_done += len(images)
        macs += row.macs * len(images)
        loss_sum += ran.result * len(images)
        report(
            MiniBatch(
                time_s=time_s,
                round=manifest.number,
                mini_batch=mini_batches,
                cores=availability.cores,
                row=choice.row,
                share=row.macs / table.rows[-1].macs,
                threads=choice.threads,
                predicted_s=choice.predicted_s,
                seconds=ran.seconds if math.isfinite(ends_s) else max(0.0, manifest.train_until_s - time_s),
                loss=ran.result,
                images=len(images),
            )
        )
        if not math.isfinite(ran.result):
            break
    changes = {name: engine.weights[name] - network.weights[name] for name in network.plan.parameters}
    if not (math.isfinite(loss_sum) and all(np.isfinite(change).all() for change in changes.values())):
        _log.warning(
            "round %d: training diverged within %d mini-batches and is thrown away; a smaller learning rate may help",
            manifest.number,
            mini_batches,
        )
        survivors = SurvivorLog(network.plan)
        images_done = mini_batches = macs = 0
        changes = {name: np.zeros_like(change) for name, change in changes.items()}
    header = UpdateHeader(
        uid=uid,
        device=device,
        round=manifest.number,
        model=manifest.model.digest,
        images=images_done,
        mini_batches=mini_batches,
        macs=macs,
        loss=loss_sum / images_done if images_done else None,
        statistics_images=statistics_images,
    )
    kept, kept_images = survivors.arrays()
    return Update(header, changes, statistics, kept, kept_images)


def _pace(manifest: Manifest, network: Network, table: Table, images: int, batch: int, speed: Speed) -> Pace:
    """Return the pace of a round over so many images: whole mini-batches, at least one."""
    settings = manifest.training
    memory = None
    if batch != table.batch:
        memory = [network.cost(row.vector, batch).peak_bytes for row in table.rows]
    return Pace(
        table,
        speed,
        ceiling=manifest.ceiling,
        planned=max(1, round(settings.epochs * images / batch)),
        most=round(settings.most_epochs * images / batch),
        images=batch,
        train_until_s=manifest.train_until_s,
        peak_bytes=memory,
    )


def _measure(
    engine: Engine,
    network: Network,
    dataset: Dataset,
    manifest: Manifest,
    board: Board,
    stopped: Callable[[], bool],
) -> tuple[Mapping[str, NDArray[np.float32]], int]:
    """Measure batch-norm statistics of the model as it was received, on a few images in fixed-size batches.

    At most a part of the round's time goes into them, so that a weak board trains as well; fewer images are measured
    then, at least one batch. An emulated board does not stretch this time.
    """
    wanted = min(manifest.training.statistics_images, len(dataset))
    if wanted < 2 or not network.plan.statistics:  # the variance of a single value says nothing
        return {}, 0
    rng = np.random.default_rng((manifest.seed, manifest.number))
    chosen = rng.permutation(len(dataset))[:wanted]
    size = min(_STATISTICS_BATCH, wanted)
    now_s = board.now()
    until_s = now_s + (1.0 if manifest.measure_only else _STATISTICS_SHARE) * (manifest.train_until_s - now_s)
    used = 0

    def batches() -> Iterator[NDArray[np.uint8]]:
        nonlocal used
        for start in range(0, wanted - size + 1, size):
            if used and (stopped() or board.now() >= until_s):
                return
            used += size
            yield dataset.images[chosen[start : start + size]]

    measured: dict[str, NDArray[np.float32]] = {}

    def work(threads: int) -> float:
        measured.update(engine.measure_statistics(batches(), threads=threads))
        return 0.0

    board.run(work, max(1, round(board.availability().cores)))
    if not all(np.isfinite(tensor).all() for tensor in measured.values()):
        _log.warning("round %d: the model's batch-norm statistics overflow and are not sent", manifest.number)
        return {}, 0
    return measured, used
