from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.aggregator import ceiling_at, check_ceilings, learning_rate_at
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
