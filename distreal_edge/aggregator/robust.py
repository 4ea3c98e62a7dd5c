"""Averages that hostile devices cannot move far: order statistics of every element, and the choice of whole updates."""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.device import pieces_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from distreal_edge.aggregator.contribution import Contribution
    from distreal_edge.network import Plan

__all__ = ["hostile_count", "krum_choice", "median_of", "most_trimmed", "sort_columns", "trimmed_mean_of"]

_COLUMNS_BYTES: Final = 2**19
"""What is sorted at once: half of what a core's cache holds."""
_STACKED: Final = 2**20
_FEWEST_ELEMENTS: Final = 2**9


def hostile_count(devices: int, share: float) -> int:
    """Return how many of so many devices a share is, rounded up."""
    # 0.1 * 30 is a little more than 3.
    return ceil(share * devices - 1e-9)


def most_trimmed(votes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Return how many votes are cut off at either end of so many: the share, rounded up, and never all of them."""
    cut = np.ceil(share * votes - 1e-9).astype(np.int64)
    most: NDArray[np.int64] = np.maximum(0, np.minimum(cut, (votes - 1) // 2))
    return most


def median_of(
    changes: NDArray[np.float32], counts: NDArray[np.int64], *, out: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Write into `out` the median of each column's finite numbers, `counts` of them; 0 for none.

    `changes` is float32 `[devices, elements]`, infinite where a device has no vote; it is sorted in place. Of an even
    number it is the mean of the two in the middle.
    """
    sort_columns(changes)
    lower, upper = (counts - 1) // 2, counts // 2
    np.add(_rows_at(changes, lower), _rows_at(changes, upper), out=out, dtype=np.float64)
    out *= 0.5
    out[counts == 0] = 0.0
    return out


def trimmed_mean_of(
    changes: NDArray[np.float32],
    counts: NDArray[np.int64],
    trimmed: NDArray[np.int64],
    *,
    out: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Write into `out` the mean of each column's finite numbers without the `trimmed` lowest and highest; 0 for none.

    `changes` and `counts` are as for `median_of`.
    """
    sort_columns(changes)
    out[...] = 0.0
    last = counts - trimmed
    alike = bool(np.all(counts == counts[0]))
    for place, row in enumerate(changes):
        if not alike:
            np.add(out, row, out=out, where=(trimmed <= place) & (place < last))
        elif trimmed[0] <= place < last[0]:
            out += row
    np.divide(out, last - trimmed, out=out, where=last > trimmed)
    return out


def _rows_at(changes: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
    found: NDArray[np.float32]
    if np.all(places == places[0]):
        found = changes[int(places[0])]
    else:
        found = np.take_along_axis(changes, np.maximum(places, 0)[None, :], axis=0)[0]
    return found


def sort_columns(numbers: NDArray[np.float32]) -> None:
    """Sort each column of float32 `[devices, elements]` in place.

    By a network of comparisons of whole rows: for as few numbers as there are devices, many times faster than sorting
    column by column.
    """
    columns = max(64, _COLUMNS_BYTES // (4 * len(numbers)))
    spare = np.empty(columns, dtype=np.float32)
    for begin in range(0, numbers.shape[1], columns):
        part = numbers[:, begin : begin + columns]
        lower = spare[: part.shape[1]]
        for one, other in _comparisons(len(numbers)):
            np.minimum(part[one], part[other], out=lower)
            np.maximum(part[one], part[other], out=part[other])
            part[one] = lower


@cache
def _comparisons(numbers: int) -> tuple[tuple[int, int], ...]:
    """Return which places to compare and exchange in turn (Batcher's merge exchange; Knuth, volume 3, 5.2.2, M)."""
    found: list[tuple[int, int]] = []
    top = 1 << max(0, (numbers - 1).bit_length() - 1)
    step = top if numbers > 1 else 0
    while step:
        width, offset, distance = top, 0, step
        while True:
            found += [(place, place + distance) for place in range(numbers - distance) if place & step == offset]
            if width == step:
                break
            distance, offset, width = width - step, step, width >> 1
        step >>= 1
    return tuple(found)


def krum_choice(plan: Plan, contributions: Sequence[Contribution], share: float, *, one: bool) -> list[int]:
    """Return which updates are nearest to their neighbours, in the order given: one, or all but the hostile share.

    With n devices of which f may be hostile, an update's score is the sum of its distances to the n - f - 2 nearest
    others, at least one (Blanchard et al., NeurIPS 2017). Devices train different elements: a distance is the mean
    square difference over the elements that both trained, and infinite when there are none.
    """
    devices = len(contributions)
    hostile = hostile_count(devices, share)
    distances = mean_square_distances(plan, contributions)
    np.fill_diagonal(distances, np.inf)
    neighbours = min(devices - 1, max(1, devices - hostile - 2))
    scores = np.sort(distances, axis=1)[:, :neighbours].sum(axis=1)
    # By name among equals, so that the order in which they are given does not decide.
    ranked = sorted(range(devices), key=lambda number: (scores[number], contributions[number].reader.header.device))
    return sorted(ranked[: 1 if one else max(1, devices - hostile)])


def mean_square_distances(plan: Plan, contributions: Sequence[Contribution]) -> NDArray[np.float64]:
    """Return the mean square difference of every two updates over the elements that both trained; inf for none."""
    devices = len(contributions)
    squares = np.zeros((devices, devices))
    shared = np.zeros((devices, devices))
    for piece in pieces_of(plan, max(_FEWEST_ELEMENTS, min(2**15, _STACKED // devices))):
        changes = np.empty((devices, piece.end - piece.begin))
        single = np.empty(changes.shape[1], dtype=np.float32)
        for row, contribution in zip(changes, contributions, strict=True):
            np.multiply(contribution.read(piece, single), contribution.factor, out=row)
        products = changes @ changes.T
        if all(contribution.whole for contribution in contributions):
            own = np.diag(products)
            squares += own[:, None] + own[None, :] - 2.0 * products
            shared += changes.shape[1]
            continue
        trained = np.array([contribution.trained(piece) for contribution in contributions], dtype=np.float64)
        shared += piece.kernel * (trained @ trained.T)
        # Of what only one of the two trained, the square does not count.
        pairs = np.square(changes).reshape(devices, -1, piece.kernel).sum(axis=2)
        common = pairs @ trained.T
        squares += common + common.T - 2.0 * products
    means = np.full_like(squares, np.inf)
    np.divide(np.maximum(squares, 0.0), shared, out=means, where=shared > 0.0)
    return means
