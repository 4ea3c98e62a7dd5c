from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.dropout import DRAW_POLICIES, Draws, Subset, check_policy, draw_subset
from distreal_edge.errors import ConfigError, DataError

SIZES = (8, 1, 5)


def _lists(subset: Subset) -> list[list[int]]:
    return [kept.tolist() for kept in subset.survivors]


def _draw(policy: str, counts: tuple[int, ...], seed: int = 0, round_number: int = 0) -> list[list[int]]:
    return _lists(draw_subset(SIZES, counts, np.random.default_rng(seed), policy, round_number))


groups = st.lists(st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))), max_size=4)


@settings(deadline=None)
@given(groups=groups, policy=st.sampled_from(sorted(DRAW_POLICIES)), seed=st.integers(0, 99), turn=st.integers(0, 99))
def test_every_policy_keeps_as_many_filters_as_asked(
    groups: list[tuple[int, int]], policy: str, seed: int, turn: int
) -> None:
    sizes, counts = [size for size, _ in groups], tuple(count for _, count in groups)
    subset = draw_subset(sizes, counts, np.random.default_rng(seed), policy, turn)
    subset.check(sizes)
    assert subset.counts == counts


@pytest.mark.parametrize("policy", sorted(DRAW_POLICIES))
def test_rate_zero_keeps_every_filter_whatever_the_policy(policy: str) -> None:
    assert _draw(policy, SIZES, seed=3, round_number=7) == [list(range(size)) for size in SIZES]


def test_ordered_keeps_the_first_filters_and_draws_nothing() -> None:
    rng = np.random.default_rng(0)
    assert _lists(draw_subset(SIZES, (3, 1, 2), rng, "ordered")) == [[0, 1, 2], [0], [0, 1]]
    assert rng.random() == np.random.default_rng(0).random()


def test_a_narrower_ordered_subset_lies_inside_every_wider_one() -> None:
    for narrow, wide in pairwise([(1, 1, 1), (2, 1, 4), (8, 1, 5)]):
        for inner, outer in zip(_draw("ordered", narrow), _draw("ordered", wide), strict=True):
            assert set(inner) <= set(outer)


def test_random_keeps_every_set_of_filters_equally_often() -> None:
    # 10 ways to keep two of five: the chi-square of 9 degrees of freedom is below 27.9 in 999 of 1,000 tries.
    draws, ways = 5000, 10
    rng = np.random.default_rng(12)
    drawn = [tuple(draw_subset((5,), (2,), rng, "random").survivors[0].tolist()) for _ in range(draws)]
    seen = Counter(drawn)
    assert len(seen) == ways
    assert sum((times - draws / ways) ** 2 / (draws / ways) for times in seen.values()) < 27.9


def test_random_groups_are_drawn_independently() -> None:
    rng = np.random.default_rng(5)
    drawn = [tuple(map(tuple, _lists(draw_subset((3, 3), (1, 1), rng, "random")))) for _ in range(3600)]
    expected = 3600 / 9
    assert sum((times - expected) ** 2 / expected for times in Counter(drawn).values()) < 26.1  # 8 degrees, 1 in 1,000


def test_random_is_reproducible_from_its_generator_and_anew_for_every_mini_batch() -> None:
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    first, second = (_lists(draw_subset((64,), (32,), rng, "random")) for _ in range(2))
    assert [_lists(draw_subset((64,), (32,), again, "random")) for _ in range(2)] == [first, second]
    assert first != second


def test_random_is_the_sorted_head_of_a_permutation_group_after_group() -> None:
    # Written down, so that another engine or version draws the same filters from the same generator.
    rng = np.random.default_rng(9)
    expected = [sorted(rng.permutation(size)[:keep].tolist()) for size, keep in zip(SIZES, (3, 1, 2), strict=True)]
    assert _draw("random", (3, 1, 2), seed=9) == expected


def test_rolling_moves_by_one_filter_every_round_and_wraps() -> None:
    windows = [_draw("rolling", (3, 1, 4), round_number=turn) for turn in range(8)]
    assert windows[0] == [[0, 1, 2], [0], [0, 1, 2, 3]]
    assert windows[1] == [[1, 2, 3], [0], [1, 2, 3, 4]]
    assert windows[2] == [[2, 3, 4], [0], [0, 2, 3, 4]]
    assert windows[6] == [[0, 6, 7], [0], [1, 2, 3, 4]]
    assert _draw("rolling", (3, 1, 4), round_number=40) == windows[0]


@settings(deadline=None)
@given(size=st.integers(1, 30), data=st.data())
def test_rolling_keeps_every_filter_equally_often(size: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, size))
    kept = Counter[int]()
    for turn in range(size):
        kept.update(draw_subset((size,), (keep,), np.random.default_rng(0), "rolling", turn).survivors[0].tolist())
    assert dict(kept) == dict.fromkeys(range(size), keep)


def _draws(policy: str, *seed: int, round_number: int = 0) -> Draws:
    return Draws(policy, (32, 16), seed, round_number)


def test_sticky_keeps_the_same_filters_throughout_a_round() -> None:
    draws = _draws("sticky", 7, 1)
    first = _lists(draws((8, 4)))
    _ = draws((20, 10))
    assert _lists(draws((8, 4))) == first
    assert _lists(_draws("sticky", 7, 1)((8, 4))) == first


def test_a_cheaper_sticky_row_lies_inside_a_wider_one() -> None:
    draws = _draws("sticky", 3)
    for narrow, wide in pairwise([(1, 1), (8, 2), (9, 12), (32, 16)]):
        for inner, outer in zip(_lists(draws(narrow)), _lists(draws(wide)), strict=True):
            assert set(inner) < set(outer)


def test_sticky_differs_between_devices_and_rounds() -> None:
    subsets = [_lists(_draws("sticky", device, turn)((16, 8))) for device in range(3) for turn in range(3)]
    assert all(one != other for position, one in enumerate(subsets) for other in subsets[:position])


def test_a_rounds_random_draws_differ_between_mini_batches_and_repeat_with_the_seed() -> None:
    draws, again = _draws("random", 7, 1), _draws("random", 7, 1)
    first = [_lists(draws((8, 4))) for _ in range(3)]
    assert [_lists(again((8, 4))) for _ in range(3)] == first
    assert first[0] != first[1] != first[2]


def test_a_rounds_rolling_draws_are_those_of_the_round() -> None:
    draws = _draws("rolling", 7, round_number=30)
    assert _lists(draws((4, 2))) == _lists(draws((4, 2))) == [[0, 1, 30, 31], [14, 15]]


def test_an_unknown_policy_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown draw policy 'best'; choose one of ordered, random, sticky, rolling"):
        check_policy("best")
    with pytest.raises(ConfigError, match="unknown draw policy"):
        check_policy([])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown draw policy"):
        draw_subset((1,), (1,), np.random.default_rng(0), "")


@pytest.mark.parametrize("counts", [(8, 1), (9, 1, 1), (0, 1, 1), (1, 1, 1, 1)])
def test_counts_that_no_group_has_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"cannot keep \[.*\] filters of groups with \[8, 1, 5\]"):
        _draw("ordered", counts)
