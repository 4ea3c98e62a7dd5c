"""How good a model is at full width, on images that no device has trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.engine import Engine
from distreal_edge.network import Network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset

__all__ = ["Scores", "evaluate", "measure_statistics", "with_statistics"]

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracy (0..1) and mean cross-entropy over `images` images."""

    accuracy: float
    loss: float
    images: int


def measure_statistics(network: Network, calibration: Dataset, threads: int) -> dict[str, NDArray[np.float32]]:
    """Measure the full network's batch-norm statistics on calibration images, by forward passes."""
    size = min(_BATCH, len(calibration))
    starts = range(0, len(calibration) - size + 1, size)
    batches = (calibration.images[start : start + size] for start in starts)
    return Engine(network).measure_statistics(batches, threads=threads)


def with_statistics(network: Network, statistics: Mapping[str, NDArray[np.float32]]) -> Network:
    """Return the network with these batch-norm statistics in place of its own."""
    return Network(network.plan, {**network.weights, **statistics})


def evaluate(network: Network, test: Dataset, threads: int) -> Scores:
    """Score the full network, with the statistics it has."""
    logits = Engine(network).predict(test.images, threads=threads).astype(np.float64)
    accuracy = float(np.mean(np.argmax(logits, axis=1) == test.labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    loss = float(np.mean(log_sum - shifted[np.arange(len(test)), test.labels]))
    return Scores(accuracy, loss, len(test))
