from __future__ import annotations

import os

import pytest

from distreal_edge.bench import State, cool_down, describe_machine, read_state

COOL = State(temperature_c=50.0, throttled=False, load=0.0)
HOT = State(temperature_c=80.0, throttled=False, load=0.0)
THROTTLED = State(temperature_c=None, throttled=True, load=0.0)
UNKNOWN = State(temperature_c=None, throttled=False, load=0.0)


@pytest.mark.parametrize("state", [COOL, UNKNOWN])
def test_a_cool_machine_only_pauses(state: State) -> None:
    slept: list[float] = []
    assert cool_down(0.25, read=lambda: state, sleep=slept.append) == state
    assert slept == [0.25]


@pytest.mark.parametrize("state", [HOT, THROTTLED])
def test_a_hot_machine_is_waited_for(state: State) -> None:
    slept: list[float] = []
    states = iter([state, state, state, COOL])
    assert cool_down(0.25, read=lambda: next(states), sleep=slept.append) == COOL
    assert len(slept) == 4


def test_a_machine_that_stays_hot_is_not_waited_for_for_ever() -> None:
    slept: list[float] = []
    assert cool_down(0.25, read=lambda: HOT, sleep=slept.append, patience_s=10.0) == HOT
    assert sum(slept) == pytest.approx(10.25)


def test_others_at_work_are_noticed() -> None:
    assert State(None, throttled=False, load=0.9).busy
    assert not COOL.busy


def test_this_machine_can_be_described() -> None:
    machine, state = describe_machine(), read_state()
    assert machine.processor
    assert machine.cores == os.cpu_count()
    assert state.load >= 0.0
