"""What a vector costs a search: multiply-accumulates, or the seconds that a profiled board would take."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.dropout import counts_vector
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from distreal_edge.dropout import Profile
    from distreal_edge.network import Cost, Network

__all__ = ["CostOf", "SecondsModel"]

_FEWEST_ROWS: Final = 6


class SecondsModel:
    """Predict the seconds of a step from its MACs and its memory, fitted to a board's profile.

    `seconds = fixed + a * MACs + b * peak_bytes` with nothing negative: multiplying costs MACs, passes over memory
    cost bytes, and starting operations costs the same for every row. `error` is the median relative error with which
    each row of the profile is predicted from the others. Raises `ConfigError` for a profile of too few rows.
    """

    def __init__(self, profile: Profile) -> None:
        if len(profile.rows) < _FEWEST_ROWS:
            message = f"a profile of {len(profile.rows)} rows says too little about others; profile a longer table"
            raise ConfigError(message)
        self.threads = profile.threads[-1]
        rows = [(row.macs, row.steps[-1].peak_bytes, row.steps[-1].median_s) for row in profile.rows]
        features = np.array([_features(macs, peak_bytes) for macs, peak_bytes, _ in rows])
        seconds = np.array([median_s for *_, median_s in rows])
        self._weights = _fit(features, seconds)
        errors: list[float] = []
        for left_out in range(len(rows)):
            others = np.arange(len(rows)) != left_out
            predicted = float(features[left_out] @ _fit(features[others], seconds[others]))
            errors.append(abs(predicted / seconds[left_out] - 1.0))
        self.error = float(np.median(errors))

    def predict(self, cost: Cost) -> float:
        """Return the seconds of a step of the profile's batch, at its most threads."""
        return float(_features(cost.macs, cost.peak_bytes) @ self._weights)


class CostOf:
    """The cost of counts, as a share of the full network's, and their peak memory in bytes at this batch size."""

    def __init__(self, network: Network, batch: int, profile: Profile | None = None) -> None:
        """Count MACs, or predict seconds when there is a profile."""
        self._network = network
        self._batch = batch
        model = None if profile is None else SecondsModel(profile)
        self._value: Callable[[Cost], float] = (lambda cost: float(cost.macs)) if model is None else model.predict
        self._full = self._value(network.cost(counts_vector(network.plan.sizes, network.plan.sizes), batch))

    def __call__(self, counts: Sequence[int]) -> tuple[float, int]:
        """Return (share of the full network's cost, peak bytes)."""
        cost = self._network.cost(counts_vector(counts, self._network.plan.sizes), self._batch)
        return self._value(cost) / self._full, cost.peak_bytes


def _features(macs: int, peak_bytes: int) -> NDArray[np.float64]:
    return np.array([1.0, macs / 1e6, peak_bytes / 1e6])


def _fit(features: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    # Relative errors count. Of all subsets of the three features the best fit without a negative weight: with so few,
    # trying each is the plainest way to non-negative least squares.
    relative = features / seconds[:, None]
    best, least = np.zeros(features.shape[1]), np.inf
    for size in range(1, features.shape[1] + 1):
        for chosen in map(list, combinations(range(features.shape[1]), size)):
            found, *_ = np.linalg.lstsq(relative[:, chosen], np.ones(len(seconds)), rcond=None)
            weights = np.zeros(features.shape[1])
            weights[chosen] = found
            error = float(np.sum((relative @ weights - 1.0) ** 2))
            if np.all(found >= 0.0) and error < least:
                best, least = weights, error
    return best
