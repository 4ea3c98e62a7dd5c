"""What a device measures before it trains a round: how fast it is, and the batch-norm statistics of the model."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.data import Batches
from distreal_edge.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset
    from distreal_edge.device.board import Board
    from distreal_edge.dropout import Table
    from distreal_edge.engine import Cancellation
    from distreal_edge.network import Network, Plan
    from distreal_edge.transport import Manifest

__all__ = ["measure_speed", "measure_statistics", "wait_while_paused"]

_log = logging.getLogger(__name__)
_LOOK_S = 0.25
_MEASURED_STEPS = 2
_STATISTICS_BATCH = 32
_STATISTICS_SHARE = 0.25


def wait_while_paused(board: Board, until_s: float, stopped: Callable[[], bool]) -> bool:
    """Wait while the owner forbids training, until `until_s` at most; return whether it is allowed now."""
    while (paused := board.availability().paused is not None) and board.now() < until_s and not stopped():
        board.wait_until(min(until_s, board.now() + _LOOK_S), stopped)
    return not paused


def measure_speed(
    network: Network,
    table: Table,
    dataset: Dataset,
    board: Board,
    batch: int,
    until_s: float,
    cancellation: Cancellation | None = None,
) -> dict[int, float]:
    """Return the seconds that one core of this board takes per image with some of the table's rows.

    Trains a copy of the network for a few mini-batches of each; the first, which only warms caches up, is not counted.
    The cheapest row is always measured, the widest one as well unless that would last beyond `until_s`. Raises
    `CancellationError`.
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
            ran = board.run(
                lambda threads: engine.step(
                    images,  # noqa: B023 - run is done before the next turn
                    labels,  # noqa: B023
                    subset,  # noqa: B023
                    lr=1e-6,
                    threads=threads,
                    cancellation=cancellation,
                ),
                1,
                row.macs * len(images),
            )
            least = min(least, ran.core_seconds / len(images))
        measured[number] = least
    return measured


def measure_statistics(
    engine: Engine,
    plan: Plan,
    dataset: Dataset,
    manifest: Manifest,
    board: Board,
    stopped: Callable[[], bool],
    cancellation: Cancellation | None = None,
) -> tuple[Mapping[str, NDArray[np.float32]], int]:
    """Measure batch-norm statistics of the model as it was received; return them, and of how many images they are.

    At most a part of the round's time goes into them, so that a weak board trains as well; fewer images are measured
    then, at least one batch. An emulated board does not stretch this time. Raises `CancellationError`.
    """
    wanted = min(manifest.training.statistics_images, len(dataset))
    if wanted < 2 or not plan.statistics:  # the variance of a single value says nothing
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
        measured.update(engine.measure_statistics(batches(), threads=threads, cancellation=cancellation))
        return 0.0

    board.run(work, max(1, round(board.availability().cores)))
    if not all(np.isfinite(tensor).all() for tensor in measured.values()):
        _log.warning("round %d: the model's batch-norm statistics overflow and are not sent", manifest.number)
        return {}, 0
    return measured, used
