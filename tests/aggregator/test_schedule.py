from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.aggregator import ceiling_at, ceiling_by_progress, check_ceilings, learning_rate_at
from distreal_edge.errors import ConfigError


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_one_step_is_a_constant_ceiling(rounds: int) -> None:
    assert {ceiling_at([(0.0, 0.4)], number, rounds) for number in range(1, rounds + 1)} == {0.4}


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(1, [0.2]), (2, [0.2, 1.0]), (3, [0.2, 0.2, 1.0]), (4, [0.2, 0.2, 1.0, 1.0]), (5, [0.2, 0.2, 0.2, 1.0, 1.0])],
)
def test_a_step_at_half_holds_once_half_of_the_rounds_are_done(rounds: int, expected: list[float]) -> None:
    steps = [(0.0, 0.2), (0.5, 1.0)]
    assert [ceiling_at(steps, number, rounds) for number in range(1, rounds + 1)] == expected


@given(rounds=st.integers(1, 300), tenths=st.integers(1, 9))
def test_the_narrow_rounds_are_as_many_as_their_share_rounded_up(rounds: int, tenths: int) -> None:
    steps = [(0.0, 0.25), (tenths / 10, 1.0)]
    narrow = sum(ceiling_at(steps, number, rounds) == 0.25 for number in range(1, rounds + 1))
    assert narrow == -(-tenths * rounds // 10)  # in whole numbers, so that no rounding of floats is repeated here


def test_several_steps_follow_each_other_up_and_down() -> None:
    steps = [(0.0, 0.2), (0.4, 0.5), (0.7, 0.3)]
    assert [ceiling_at(steps, number, 10) for number in range(1, 11)] == [0.2] * 4 + [0.5] * 3 + [0.3] * 3


@pytest.mark.parametrize("steps", [[], [(0.1, 1.0)], [(0.0, 0.2), (0.0, 1.0)], [(0.0, 0.2), (0.6, 0.5), (0.5, 1.0)]])
def test_steps_must_begin_at_zero_and_rise(steps: list[tuple[float, float]]) -> None:
    with pytest.raises(ConfigError, match=r"^ceiling: .*from_share"):
        check_ceilings(steps)


def test_the_learning_rate_is_constant_without_a_final_one() -> None:
    assert {learning_rate_at(0.3, None, number, 9) for number in range(1, 10)} == {0.3}


@pytest.mark.parametrize("rounds", [2, 3, 10, 11])
def test_the_learning_rate_falls_along_a_half_cosine(rounds: int) -> None:
    rates = [learning_rate_at(0.1, 0.01, number, rounds) for number in range(1, rounds + 1)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)
    # Mirrored, first and last add up to the same: the cosine's symmetry, and its middle at an odd number of rounds.
    assert [one + other for one, other in zip(rates, reversed(rates), strict=True)] == pytest.approx([0.11] * rounds)
    quarter = learning_rate_at(1.0, 0.0, 2, 5)
    assert quarter == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_a_single_round_trains_at_the_first_rate_and_rounds_beyond_the_last_at_the_final_one() -> None:
    assert learning_rate_at(0.1, 0.01, 1, 1) == 0.1
    assert learning_rate_at(0.1, 0.01, 12, 10) == pytest.approx(0.01)


def ceilings_by_progress(losses: list[float | None], *, window: int = 2, least_fall: float = 0.1) -> list[float]:
    """Return the ceiling of every round, each from the losses before it."""
    return [
        ceiling_by_progress([0.2, 0.5, 1.0], losses[:number], window=window, least_fall=least_fall)
        for number in range(len(losses) + 1)
    ]


def test_the_ceiling_stays_while_the_loss_falls() -> None:
    assert set(ceilings_by_progress([0.9**number for number in range(40)])) == {0.2}


def test_the_ceiling_rises_in_the_round_after_the_loss_has_stopped_falling() -> None:
    # Means of 4 and 2 (falls by half), of 3 and 1.95 (by a third), of 2 and 1.9 (by a twentieth).
    losses: list[float | None] = [4.0, 4.0, 2.0, 2.0, 1.9, 1.9]
    assert ceilings_by_progress(losses) == [0.2] * 6 + [0.5]


def test_every_ceiling_has_two_windows_of_its_own_and_the_last_one_stays() -> None:
    assert ceilings_by_progress([1.0] * 15) == [0.2] * 4 + [0.5] * 4 + [1.0] * 8


def test_a_loss_that_is_higher_under_a_new_ceiling_is_compared_with_its_own_only() -> None:
    assert ceilings_by_progress([1.0] * 4 + [3.0, 3.0, 2.0, 2.0, 1.0, 1.0])[-1] == 0.5


def test_a_fall_of_just_the_share_that_is_asked_for_is_not_more_than_that() -> None:
    assert ceiling_by_progress([0.3, 1.0], [2.0, 1.0], window=1, least_fall=0.5) == 1.0
    assert ceiling_by_progress([0.3, 1.0], [2.0, 0.99], window=1, least_fall=0.5) == 0.3


def test_rounds_in_which_nobody_trained_are_passed_over() -> None:
    assert ceilings_by_progress([1.0, None, 1.0, None, None, 1.0, 1.0]) == [0.2] * 7 + [0.5]


def test_a_loss_that_is_not_a_number_has_stopped_falling() -> None:
    assert ceilings_by_progress([1.0, 1.0, math.nan, 0.1])[-1] == 0.5


@given(st.lists(st.floats(0.01, 10.0), max_size=60), st.integers(1, 5), st.floats(0.0, 0.5))
def test_the_ceiling_never_sinks(losses: list[float | None], window: int, least_fall: float) -> None:
    found = ceilings_by_progress(losses, window=window, least_fall=least_fall)
    assert found == sorted(found)


@pytest.mark.parametrize(("ceilings", "window", "least_fall"), [([], 2, 0.1), ([0.5], 0, 0.1), ([0.5], 2, 1.0)])
def test_progress_needs_ceilings_a_window_and_a_share(ceilings: list[float], window: int, least_fall: float) -> None:
    with pytest.raises(ConfigError, match=r"^ceiling by progress: "):
        ceiling_by_progress(ceilings, [], window=window, least_fall=least_fall)
