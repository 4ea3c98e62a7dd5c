"""Train one round on one device, and make the update of it.

No sockets, no clock of its own: the board tells the time, the availability and how long work took.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.data import Batches
from distreal_edge.device.pace import Pace, Speed
from distreal_edge.device.update import SurvivorLog, Update, UpdateHeader
from distreal_edge.dropout import Draws, filter_counts
from distreal_edge.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset
    from distreal_edge.device.board import Board
    from distreal_edge.dropout import Table
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest

__all__ = ["MiniBatch", "measure_speed", "round_seed", "train_round"]

_STATISTICS_BATCH = 32
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


def measure_speed(network: Network, table: Table, dataset: Dataset, board: Board, batch: int) -> float:
    """Return the seconds that one core of this board takes per multiply-accumulate, on the table's cheapest row.

    Trains a copy of the network for a few mini-batches; the first, which only warms caches up, is not counted.
    """
    engine = Engine(network)
    row = table.rows[0]
    batches = Batches(dataset, batch, np.random.default_rng(0))
    subset = network.draw(row.vector, np.random.default_rng(0))
    measured = math.inf
    for _ in range(1 + _MEASURED_STEPS):
        images, labels = next(batches)
        ran = board.run(lambda threads: engine.step(images, labels, subset, lr=1e-6, threads=threads), 1)  # noqa: B023
        measured = min(measured, ran.core_seconds / (row.macs * len(images)))
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

    `report` is called after every mini-batch. The network itself is left as it is.
    """
    settings = manifest.training
    seed = round_seed(manifest, device)
    engine = Engine(network, seed=seed)
    draws = Draws(manifest.draw, network.plan.sizes, seed, manifest.number)
    batches = Batches(dataset, settings.batch, np.random.default_rng(seed))
    statistics, statistics_images = _measure(engine, network, dataset, manifest)
    per_epoch = len(dataset) / batches.batch_size
    planned = max(1, round(settings.epochs * per_epoch))
    pace = Pace(
        table,
        speed,
        ceiling=manifest.ceiling,
        planned=planned,
        most=round(settings.most_epochs * per_epoch),
        images=batches.batch_size,
        train_until_s=manifest.train_until_s,
    )
    survivors = SurvivorLog(network.plan)
    images_done = mini_batches = macs = 0
    loss_sum = 0.0
    while not manifest.measure_only and not stopped():
        time_s = board.now()
        availability = board.availability()
        choice = pace.choose(time_s, availability)
        if choice is None:
            break
        row = table.rows[choice.row]
        subset = draws(filter_counts(row.vector, network.plan.sizes))
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
        pace.finished(choice, ran.core_seconds)
        survivors.add(subset, len(images))
        mini_batches += 1
        images_done += len(images)
        macs += row.macs * len(images)
        loss_sum += ran.result * len(images)
        share = row.macs / table.rows[-1].macs
        report(
            MiniBatch(
                time_s=time_s,
                round=manifest.number,
                mini_batch=mini_batches,
                cores=availability.cores,
                row=choice.row,
                share=share,
                threads=choice.threads,
                predicted_s=choice.predicted_s,
                seconds=ran.seconds,
                loss=ran.result,
                images=len(images),
            )
        )
    mean_loss = loss_sum / images_done if images_done else None
    header = UpdateHeader(
        uid=uid,
        device=device,
        round=manifest.number,
        model=manifest.model.digest,
        images=images_done,
        mini_batches=mini_batches,
        macs=macs,
        loss=mean_loss if mean_loss is not None and math.isfinite(mean_loss) else None,
        statistics_images=statistics_images,
    )
    changes = {name: engine.weights[name] - network.weights[name] for name in network.plan.parameters}
    kept, kept_images = survivors.arrays()
    return Update(header, changes, statistics, kept, kept_images)


def _measure(
    engine: Engine, network: Network, dataset: Dataset, manifest: Manifest
) -> tuple[Mapping[str, NDArray[np.float32]], int]:
    """Measure batch-norm statistics of the model as it was received, on a few images in fixed-size batches."""
    wanted = min(manifest.training.statistics_images, len(dataset))
    if not wanted or not network.plan.statistics:
        return {}, 0
    rng = np.random.default_rng((manifest.seed, manifest.number))
    chosen = rng.permutation(len(dataset))[:wanted]
    size = min(_STATISTICS_BATCH, wanted)
    starts = range(0, wanted - size + 1, size)
    measured = engine.measure_statistics(dataset.images[chosen[start : start + size]] for start in starts)
    return measured, len(starts) * size
