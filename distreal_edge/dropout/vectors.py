"""Dropout vectors: one rate per filter group, and the filter counts that they leave."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Vector", "check_vector", "counts_vector", "filter_counts", "uniform_vector"]

_FORM = "a dropout vector is a sequence of rates in [0, 1), one per filter group"

Vector = tuple[float, ...]


def check_vector(vector: Sequence[float], sizes: Sequence[int]) -> Vector:
    """Return the vector as a tuple of floats, or raise `DataError` when it does not fit groups of these sizes."""
    try:
        rates = tuple(float(rate) for rate in vector)
    except (TypeError, ValueError):
        message = f"{_FORM}; got {vector!r}"
        raise DataError(message) from None
    if len(rates) != len(sizes):
        message = f"{_FORM}; got {count_of(len(rates), 'rate')} for {count_of(len(sizes), 'filter group')}"
        raise DataError(message)
    for position, rate in enumerate(rates):
        if not (math.isfinite(rate) and 0.0 <= rate < 1.0):
            message = f"{_FORM}; rate {position} is {rate}"
            raise DataError(message)
    return rates


def filter_counts(vector: Sequence[float], sizes: Sequence[int]) -> tuple[int, ...]:
    """Return how many filters each group keeps: `max(1, round((1 - p) * C))`, halves rounded to even as Python does."""
    return tuple(
        max(1, round((1.0 - rate) * size)) for rate, size in zip(check_vector(vector, sizes), sizes, strict=True)
    )


def counts_vector(counts: Sequence[int], sizes: Sequence[int]) -> Vector:
    """Return the rates that keep these counts, as short as they can be written: `filter_counts` undoes it.

    Raises `DataError` for counts that do not fit groups of these sizes.
    """
    if len(counts) != len(sizes) or not all(1 <= keep <= size for keep, size in zip(counts, sizes, strict=False)):
        message = f"cannot keep {list(counts)} filters of groups with {list(sizes)}: at least one, at most all of each"
        raise DataError(message)
    return tuple(_shortest_rate(keep, size) for keep, size in zip(counts, sizes, strict=True))


@cache
def _shortest_rate(keep: int, size: int) -> float:
    for digits in range(1, 17):
        rate = round(1.0 - keep / size, digits)
        if 0.0 <= rate < 1.0 and filter_counts([rate], [size])[0] == keep:
            return rate
    return 1.0 - keep / size


def uniform_vector(rate: float, groups: int) -> Vector:
    """Return the vector that drops every one of `groups` groups at the same rate."""
    return check_vector([rate] * groups, [1] * groups)
