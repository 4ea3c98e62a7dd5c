"""Average the updates of a round into the next model."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from distreal_edge.device import Update
    from distreal_edge.network import Parameter, Plan

__all__ = ["Average", "AverageKind", "pool_statistics"]

AverageKind = Literal["touch", "fedavg"]

_MEAN: Final = ".running_mean"
_VARIANCE: Final = ".running_var"


class Average:
    """Collect updates one at a time; memory does not grow with their number.

    `touch`: an element's new value is the old one plus the mean of the devices' changes, each weighted by the images
    of the mini-batches in which that device trained that element; nobody's element stays as it is. `fedavg`: the
    weights are each device's images, whatever it trained (McMahan et al. 2017). With rate 0 everywhere they are equal.
    The result depends on the order of the updates in its last bits only; give them in a fixed order.
    """

    def __init__(self, plan: Plan, kind: AverageKind) -> None:
        """Start with no update."""
        self._parameters = plan.parameters
        self._kind = kind
        self._sums = {name: np.zeros(parameter.shape) for name, parameter in plan.parameters.items()}
        self._weights = {name: np.zeros((1,) * len(parameter.shape)) for name, parameter in plan.parameters.items()}

    def add(self, update: Update) -> None:
        """Fold an update in."""
        for name, parameter in self._parameters.items():
            weight = self._weight(update, parameter)
            self._sums[name] += weight * update.changes[name]
            self._weights[name] = self._weights[name] + weight

    def apply(self, weights: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Return the next model's tensors; elements that no update trained, and statistics, keep every bit."""
        after = dict(weights)
        for name, total in self._sums.items():
            weight = np.broadcast_to(self._weights[name], total.shape)
            mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
            after[name] = np.where(weight > 0, weights[name] + mean, weights[name]).astype(np.float32)
        return after

    def _weight(self, update: Update, parameter: Parameter) -> NDArray[np.float64]:
        if self._kind == "fedavg":
            return np.full((1,) * len(parameter.shape), float(update.header.images))
        return parameter.images_per_element(update.kept, update.kept_images)


def pool_statistics(
    plan: Plan, measured: Iterable[tuple[int, Mapping[str, NDArray[np.float32]]]]
) -> dict[str, NDArray[np.float32]]:
    """Pool batch-norm statistics that devices measured on one model, each with its number of images.

    Means and (unbiased) variances become those of all values that the devices' batch norms saw, taken together: a
    channel sees one value per image and position. Returns nothing when nobody measured. Every result is finite.
    """
    parts = [(images, statistics) for images, statistics in measured if images]
    if not parts:
        return {}
    pooled: dict[str, NDArray[np.float32]] = {}
    for variance in plan.statistics:
        if not variance.endswith(_VARIANCE):
            continue
        layer = variance.removesuffix(_VARIANCE)
        positions = prod(plan.shapes[layer][1:])
        counts = np.array([float(images * positions) for images, _ in parts])[:, None]  # devices, 1
        means = np.array([statistics[layer + _MEAN] for _, statistics in parts], dtype=np.float64)  # devices, channels
        variances = np.array([statistics[variance] for _, statistics in parts], dtype=np.float64)
        mean = (counts * means).sum(axis=0) / counts.sum()
        squares = ((counts - 1.0) * variances + counts * np.square(means - mean)).sum(axis=0)
        pooled[layer + _MEAN] = mean.astype(np.float32)
        # What a hostile device claims may be finite, and its square too large for a float32.
        limited = np.minimum(squares / max(1.0, counts.sum() - 1.0), np.finfo(np.float32).max)
        pooled[variance] = limited.astype(np.float32)
    return pooled
