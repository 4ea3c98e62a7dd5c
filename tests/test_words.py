from __future__ import annotations

import pytest

from distreal_edge.words import count_of, round_of


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 images"), (1, "1 image"), (2, "2 images"), (21, "21 images"), ("0.5", "0.5 images")],
)
def test_one_of_a_kind_is_said_as_one(number: int | str, words: str) -> None:
    assert count_of(number, "image") == words


def test_what_is_more_than_an_s_is_given() -> None:
    assert [count_of(number, "mini-batch", "mini-batches") for number in (1, 3)] == ["1 mini-batch", "3 mini-batches"]


@pytest.mark.parametrize(
    ("number", "rounds", "words"),
    [
        (1, 1000, "round 1 of 1000"),
        (1000, 1000, "round 1000 of 1000"),
        (1001, 1000, "round 1001, the closing measurement"),
        (7, 0, "round 7"),
        (1, 0, "round 1"),
        (7, 3, "round 7"),
    ],
)
def test_a_round_that_only_measures_is_none_of_those_that_train(number: int, rounds: int, words: str) -> None:
    assert round_of(number, rounds) == words
