from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.dropout import check_vector, filter_counts, uniform_vector
from distreal_edge.errors import DataError

rates = st.floats(0.0, 1.0, exclude_max=True)


def _count(rate: float, filters: int) -> int:
    """Round (1 - rate) * filters, in doubles as documented, to the nearest whole number, halves to the even one."""
    wanted = Fraction((1.0 - rate) * filters)
    below = floor(wanted)
    over = wanted - below
    rounded = below + (over > Fraction(1, 2) or (over == Fraction(1, 2) and below % 2 == 1))
    return max(1, rounded)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(rates, st.integers(1, 65536)), max_size=5))
def test_counts_follow_the_formula(pairs: list[tuple[float, int]]) -> None:
    vector, sizes = [rate for rate, _ in pairs], [size for _, size in pairs]
    counts = filter_counts(vector, sizes)
    assert counts == tuple(_count(rate, size) for rate, size in pairs)
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))


@pytest.mark.parametrize(
    ("rate", "filters", "count"),
    [
        *[(0.0, 1, 1), (0.0, 64, 64), (0.5, 64, 32), (0.9, 10, 1), (0.999, 10, 1)],
        *[(0.5, 1, 1), (0.5, 3, 2), (0.5, 5, 2), (0.25, 2, 2), (0.75, 6, 2), (0.75, 10, 2)],
    ],
)
def test_counts_in_figures(rate: float, filters: int, count: int) -> None:
    assert filter_counts([rate], [filters]) == (count,)


@settings(deadline=None)
@given(size=st.integers(1, 65536), low=rates, high=rates)
def test_a_higher_rate_never_keeps_more(size: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert filter_counts([high], [size]) <= filter_counts([low], [size])


def test_a_vector_is_any_sequence_of_numbers() -> None:
    assert check_vector(np.array([0.5, 0.0]), [4, 4]) == (0.5, 0.0)  # type: ignore[arg-type]
    assert check_vector([0, 0.25], [4, 4]) == (0.0, 0.25)
    assert check_vector((), ()) == ()
    assert uniform_vector(0.25, 3) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("vector", "complaint"),
    [
        ([0.5], "got 1 rate for 2 filter groups"),
        ([0.5] * 3, "got 3 rates for 2 filter groups"),
        ([0.0, 1.0], "rate 1 is 1.0"),
        ([-0.1, 0.0], "rate 0 is -0.1"),
        ([0.0, float("nan")], "rate 1 is nan"),
        ([float("inf"), 0.0], "rate 0 is inf"),
        (["half", 0.0], r"got \['half', 0.0\]"),
        (0.5, "got 0.5"),
        ([None, 0.0], "got .None, 0.0"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(vector: object, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"rates in \[0, 1\), one per filter group; {complaint}"):
        check_vector(vector, [4, 4])  # type: ignore[arg-type]
