"""Show that rows change inside a round when cores do: counts and correlations over the mini-batches of one round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from distreal_edge.observe.records import Steps

__all__ = ["Adaptation", "DeviceRound", "add_up", "device_round", "rank_correlation"]


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What rows did when cores changed.

    Neighbouring mini-batches with equal cores form a stretch. From each stretch to the next inside the same round the
    cores change, and the mean row `followed` (changed in the same direction), was `opposed` or `unchanged`.
    """

    core_changes: int = 0
    followed: int = 0
    opposed: int = 0
    unchanged: int = 0


@dataclass(frozen=True, slots=True)
class DeviceRound:
    """One device in one round. Shares are of the full network's MACs and are averages over images.

    `correlation` is Spearman's, between cores and row over the round's mini-batches; None where either never changed.
    The averages and extremes are None when the device trained nothing.
    """

    device: str
    answered: bool
    mini_batches: int
    images: int
    mean_share: float | None
    least_cores: float | None
    most_cores: float | None
    distinct_cores: int
    least_row: int | None
    most_row: int | None
    distinct_rows: int
    adaptation: Adaptation
    correlation: float | None


def device_round(device: str, steps: Steps, *, answered: bool) -> DeviceRound:
    """Sum up the mini-batches that one device trained in one round; `answered` says whether its update was counted."""
    images = int(steps.images.sum())
    trained = len(steps) > 0
    return DeviceRound(
        device=device,
        answered=answered,
        mini_batches=len(steps),
        images=images,
        mean_share=float(steps.share @ steps.images) / images if images else None,
        least_cores=float(steps.cores.min()) if trained else None,
        most_cores=float(steps.cores.max()) if trained else None,
        distinct_cores=len(np.unique(steps.cores)),
        least_row=int(steps.row.min()) if trained else None,
        most_row=int(steps.row.max()) if trained else None,
        distinct_rows=len(np.unique(steps.row)),
        adaptation=_adaptation(steps),
        correlation=rank_correlation(steps.cores, steps.row.astype(np.float64)),
    )


def _adaptation(steps: Steps) -> Adaptation:
    if len(steps) < 2:
        return Adaptation()
    starts = np.flatnonzero(np.diff(steps.cores, prepend=np.nan) != 0)  # the first element differs from NaN
    lengths = np.diff(starts, append=len(steps))
    mean_rows = np.add.reduceat(steps.row.astype(np.float64), starts) / lengths
    product = np.sign(np.diff(steps.cores[starts])) * np.sign(np.diff(mean_rows))
    return Adaptation(
        core_changes=len(product),
        followed=int(np.count_nonzero(product > 0)),
        opposed=int(np.count_nonzero(product < 0)),
        unchanged=int(np.count_nonzero(product == 0)),
    )


def add_up(parts: Iterable[Adaptation]) -> Adaptation:
    """Return the sums over several devices or rounds."""
    total = Adaptation()
    for part in parts:
        total = Adaptation(
            total.core_changes + part.core_changes,
            total.followed + part.followed,
            total.opposed + part.opposed,
            total.unchanged + part.unchanged,
        )
    return total


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return Spearman's correlation of two arrays [N], ties sharing their mean rank; None where one is constant."""
    ranks = [_ranks(values) for values in (first, second)]
    spread = [values - values.mean() for values in ranks] if len(first) else ranks
    scale = float(np.sqrt((spread[0] @ spread[0]) * (spread[1] @ spread[1])))
    return float(spread[0] @ spread[1]) / scale if scale > 0 else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[where]
    return ranks
