"""How good a model is at full width, on images that no device has trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.engine import Engine, mean_cross_entropy
from distreal_edge.errors import DataError
from distreal_edge.network import Network
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset
    from distreal_edge.dropout import Table, Vector

__all__ = ["HeldOut", "Part", "Scores", "evaluate", "measure_statistics", "trained_part", "with_statistics"]

_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """The aggregator's own images: `test` to score models on, `calibration` to measure batch-norm statistics on."""

    test: Dataset | None = None
    calibration: Dataset | None = None
    threads: int = 1

    def check(self, network: Network) -> None:
        """Raise `DataError` unless the images fit the network, and `ConfigError` when nothing here can compute."""
        for what, images in (("test", self.test), ("calibration", self.calibration)):
            if images is None:
                continue
            shape, expected = images.images.shape[1:], network.plan.input_shape
            if len(images) < 2:
                raise DataError(
                    f"dataset {images.name}: {count_of(len(images), f'{what} image')}; at least 2 are needed"
                )
            if shape != expected:
                raise DataError(
                    f"dataset {images.name}: its images are {list(shape)}, the network takes {list(expected)}; "
                    "choose a network with these in_channels and this image_size"
                )
            if images.classes > network.plan.classes:
                raise DataError(
                    f"dataset {images.name}: it has {images.classes} classes, the network {network.plan.classes}; "
                    "choose a network with as many classes"
                )
        if self.test is not None or self.calibration is not None:
            Engine(network)  # says so when there is no engine, before a round is lost for it


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracy (0..1) and mean cross-entropy (None when it is not finite) over `images` images."""

    accuracy: float
    loss: float | None
    images: int


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a network that an ordered draw of `vector` keeps, and its share of the full network's MACs."""

    vector: Vector
    share: float


def trained_part(table: Table, ceiling: float) -> Part | None:
    """Return what has been trained when no wider row was ever let through; None when that may be all of the network.

    Only ordered draws leave the same filters out every time.
    """
    row = table.under(ceiling)[-1]
    return Part(row.vector, row.macs / table.rows[-1].macs) if table.draw == "ordered" and any(row.vector) else None


def measure_statistics(network: Network, calibration: Dataset, threads: int) -> dict[str, NDArray[np.float32]]:
    """Measure the full network's batch-norm statistics on all calibration images, by forward passes."""
    batches = np.array_split(calibration.images, max(1, -(-len(calibration) // _BATCH)))
    return Engine(network).measure_statistics(batches, threads=threads)


def with_statistics(network: Network, statistics: Mapping[str, NDArray[np.float32]]) -> Network:
    """Return the network with these batch-norm statistics in place of its own."""
    return Network(network.plan, {**network.weights, **statistics})


def evaluate(network: Network, test: Dataset, threads: int) -> Scores:
    """Score the full network, with the statistics it has."""
    logits = Engine(network).predict(test.images, threads=threads)
    accuracy = float(np.mean(np.argmax(logits, axis=1) == test.labels))
    loss = mean_cross_entropy(logits, test.labels)
    return Scores(accuracy, loss if np.isfinite(loss) else None, len(test))
