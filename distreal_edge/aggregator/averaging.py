"""Average the updates of a round into the next model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from distreal_edge.device import Update
    from distreal_edge.network import Parameter, Plan

__all__ = ["Average", "AverageKind", "pool_statistics"]

AverageKind = Literal["touch", "fedavg"]


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
        """Return the next model's tensors; what no update trained, and statistics, are the same arrays as before."""
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
    measured: Iterable[tuple[int, Mapping[str, NDArray[np.float32]]]],
) -> dict[str, NDArray[np.float32]]:
    """Pool batch-norm statistics that devices measured on one model, each with its number of images.

    Means are averaged by images; variances become that of all images together: mean of squares minus squared mean.
    Returns nothing when nobody measured.
    """
    images = 0
    sums: dict[str, NDArray[np.float64]] = {}
    for count, statistics in measured:
        images += count
        for name, tensor in statistics.items():
            moment = tensor.astype(np.float64)
            if name.endswith(".running_var"):
                moment = moment + np.square(statistics[_mean_of(name)].astype(np.float64))
            sums[name] = sums.get(name, 0.0) + count * moment
    pooled = {name: total / images for name, total in sums.items()}
    for name, moment in pooled.items():
        if name.endswith(".running_var"):
            pooled[name] = np.maximum(moment - np.square(pooled[_mean_of(name)]), 0.0)
    return {name: tensor.astype(np.float32) for name, tensor in pooled.items()}


def _mean_of(variance: str) -> str:
    return variance.removesuffix("running_var") + "running_mean"
