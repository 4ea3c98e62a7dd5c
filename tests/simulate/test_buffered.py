from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.simulate.buffered import Buffered, staleness_weight

NAMES = [f"device-{number}" for number in range(6)]


@pytest.mark.parametrize(("staleness", "weight"), [(0, 1.0), (1, 1 / math.sqrt(2)), (3, 0.5), (8, 1 / 3), (99, 0.1)])
def test_a_stale_change_counts_by_the_inverse_root_of_its_staleness_and_one(staleness: int, weight: float) -> None:
    assert staleness_weight(staleness) == pytest.approx(weight)


def test_staleness_is_how_many_models_were_made_since_a_device_began() -> None:
    buffered = Buffered(buffer=2, concurrency=3, seed=0)
    assert set(buffered.begin(["a", "b", "c"])) == {"a", "b", "c"}
    buffered.arrived("a")
    assert not buffered.full
    assert buffered.begin(["a"]) == ("a",)  # again, still on the first model
    buffered.arrived("b")
    assert buffered.full
    assert buffered.aggregate() == (0, 0)
    assert buffered.begin(["b"]) == ("b",)  # on the second
    buffered.arrived("a")
    buffered.arrived("b")
    assert buffered.aggregate() == (1, 0)
    assert set(buffered.begin(["a", "b"])) == {"a", "b"}  # on the third
    buffered.arrived("c")
    buffered.arrived("b")
    assert buffered.aggregate() == (2, 0)
    assert buffered.version == 3


def test_who_gave_up_makes_room_and_does_not_count() -> None:
    buffered = Buffered(buffer=1, concurrency=1, seed=0)
    buffered.begin(["a"])
    assert buffered.begin(["b"]) == ()
    buffered.gave_up("a")
    assert not buffered.full
    assert buffered.begin(["b"]) == ("b",)


@settings(max_examples=60, deadline=None)
@given(
    buffer=st.integers(1, 4),
    concurrency=st.integers(1, 8),
    moves=st.lists(st.tuples(st.sets(st.sampled_from(NAMES)), st.integers(0, 7)), max_size=40),
)
def test_whatever_happens_it_counts_as_a_plain_list_of_events_does(
    buffer: int, concurrency: int, moves: list[tuple[set[str], int]]
) -> None:
    buffered = Buffered(buffer=buffer, concurrency=concurrency, seed=1)
    began: dict[str, int] = {}
    waiting: list[int] = []
    made = 0
    for able, pick in moves:
        begun = buffered.begin(able)
        assert len(begun) == min(len(able - set(began)), concurrency - len(began))
        assert set(begun) <= able - set(began)
        began |= dict.fromkeys(begun, made)
        assert len(began) <= concurrency
        if began:
            device = sorted(began)[pick % len(began)]
            waiting.append(made - began.pop(device))
            buffered.arrived(device)
        assert buffered.full == (len(waiting) == buffer)
        if buffered.full:
            assert list(buffered.aggregate()) == waiting
            waiting, made = [], made + 1


def test_devices_have_their_turns_by_chance_alone() -> None:
    buffered = Buffered(buffer=3, concurrency=1, seed=5)
    turns: Counter[str] = Counter()
    for _ in range(1200):
        turns.update(buffered.begin(NAMES))
        buffered.arrived(*buffered.training)
        if buffered.full:
            buffered.aggregate()
    # Within 4 standard errors of a die's throws.
    assert sorted(turns) == NAMES
    assert max(abs(turn - 200) for turn in turns.values()) <= 4 * math.sqrt(1200 * 5 / 36)


def test_the_same_seed_selects_the_same_devices() -> None:
    one, other = (Buffered(buffer=2, concurrency=3, seed=9) for _ in range(2))
    assert one.begin(NAMES) == other.begin(list(reversed(NAMES)))
    assert {Buffered(buffer=2, concurrency=3, seed=seed).begin(NAMES) for seed in range(20)} != {one.begin(NAMES)}
