from __future__ import annotations

import numpy as np
import pytest

from distreal_edge.dropout import Subset
from distreal_edge.errors import DataError


def _subset(*survivors: list[int]) -> Subset:
    return Subset(tuple(np.array(kept, dtype=np.int64) for kept in survivors))


def test_the_full_subset_keeps_everything() -> None:
    subset = Subset.full((3, 1))
    subset.check((3, 1))
    assert subset.counts == (3, 1)
    assert subset.mask((3, 1)).tolist() == [True] * 5


def test_a_mask_lays_the_groups_one_after_the_other_and_ends_with_what_is_never_dropped() -> None:
    mask = _subset([0, 2], [1]).mask((3, 2))
    assert mask.dtype == np.bool_
    assert mask.tolist() == [True, False, True, False, True, True]
    assert mask[-1]
    assert Subset(()).mask(()).tolist() == [True]


@pytest.mark.parametrize(
    ("subset", "complaint"),
    [
        (_subset([0]), "a subset lists the survivors of 1 group, but the network has 2"),
        (_subset([0], [0], [0]), "a subset lists the survivors of 3 groups, but the network has 2"),
        (_subset([0], []), "the subset's group 1 keeps no filter; keep at least one"),
        (_subset([0, 3], [0]), r"the subset's group 0 must be sorted, distinct and within 0\.\.2"),
        (_subset([-1, 0], [0]), r"group 0 must be sorted, distinct and within 0\.\.2"),
        (_subset([1, 0], [0]), "group 0 must be sorted"),
        (_subset([1, 1], [0]), "group 0 must be sorted"),
        (_subset([0], [0, 1, 2, 1]), "group 1 must be sorted"),
        (Subset((np.zeros(1), np.zeros(1))), r"group 0 must be a one-dimensional int64 array, got float64 \[1\]"),
        (Subset((np.array([0]), np.zeros(1, dtype=np.int32))), r"group 1 must be .* got int32 \[1\]"),
        (Subset((np.zeros((1, 1), dtype=np.int64), np.array([0]))), r"group 0 must be .* got int64 \[1, 1\]"),
        (Subset(([0], [0])), "group 0 must be a one-dimensional int64 array, got list"),  # type: ignore[arg-type]
    ],
)
def test_a_subset_that_does_not_fit_is_refused(subset: Subset, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        subset.check((3, 2))
    with pytest.raises(DataError, match=complaint):
        subset.mask((3, 2))
