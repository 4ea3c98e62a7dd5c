from __future__ import annotations

import os
from typing import Any

import pytest

from distreal_edge import _native
from distreal_edge.bench import (
    DIRECTIONS,
    Convolution,
    Step,
    check_instruction_set,
    parse_problem,
    run_convolution,
    run_step,
    time_direction,
)
from distreal_edge.errors import ConfigError

SETS = _native.instruction_sets()
VARIABLE = "DISTREAL_EDGE_INSTRUCTION_SET"


def convolution(text: str) -> Convolution:
    problem = parse_problem(text)
    assert isinstance(problem, Convolution)
    return problem


def step(text: str) -> Step:
    problem = parse_problem(text)
    assert isinstance(problem, Step)
    return problem


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(
    "text",
    [
        "n5 c3>7 9x9",
        "n5 c8>8 k3 s2 9x9 keep.5",
        "n3 c6>6 gD 9x9 keep.5",
        "n3 c6>12 gD k3x1 s2x1 9x8",
        "n3 c6>9 g3 k1 9x9 keep.6",
        "n17 c4>4 k5 d2 9x9 keep.01",
        "n2 c64>64 1x1 k1",
    ],
)
def test_every_kind_of_convolution_is_timed(text: str, instruction_set: str) -> None:
    result = run_convolution(convolution(text), threads=1, instruction_set=instruction_set, seconds=0.001)
    assert tuple(result.directions) == DIRECTIONS
    for figures in result.directions.values():
        assert figures.timing.repeats >= 3
        assert 0.0 < figures.timing.minimum_s <= figures.timing.median_s
        assert figures.gmacs_per_s > 0.0
        assert 0.0 < figures.peak_share < 3.0  # others may compute while the peak is measured


@pytest.mark.alone
def test_more_work_takes_longer_and_threads_run() -> None:
    little, much = convolution("n8 c8>8 16x16"), convolution("n8 c64>64 16x16")
    for direction in DIRECTIONS:
        short, long = (min(time_direction(problem, direction, 1, "", 5)) for problem in (little, much))
        assert long > 4 * short  # of 64 times the work
        assert len(time_direction(little, direction, 3, "", 4)) == 4


@pytest.mark.alone
def test_a_wider_instruction_set_has_a_higher_peak() -> None:
    peaks = [_native.measure_peak(name, 0.02) for name in (SETS[0], "plain")]
    assert peaks[1] > 1e7
    assert len(SETS) == 1 or peaks[0] > 1.5 * peaks[1]


GOOD: dict[str, Any] = {
    "direction": "forward",
    "n": 1,
    "in_channels": 4,
    "out_channels": 4,
    "kept_in": 4,
    "kept_out": 4,
    "height": 4,
    "width": 4,
    "kernel": (3, 3),
    "stride": (1, 1),
    "padding": (1, 1),
    "dilation": (1, 1),
    "groups": 1,
    "repeats": 1,
}


@pytest.mark.parametrize(
    "bad",
    [
        {"direction": "sideways"},
        {"n": 0},
        {"n": 2**30},
        {"kept_in": 5},
        {"kept_out": 0},
        {"groups": 3},
        {"groups": 0},
        {"groups": 4, "kept_in": 2},
        {"kernel": (0, 3)},
        {"kernel": (3, 257)},
        {"padding": (-1, 0)},
        {"height": 4, "kernel": (7, 1)},
        {"in_channels": 4096, "kept_in": 4096, "height": 4096, "width": 4096},
        {"repeats": 0},
        {"threads": 0},
        {"threads": 10_000},
        {"instruction_set": "quantum"},
    ],
)
def test_native_code_refuses_a_problem_that_cannot_be(bad: dict[str, Any]) -> None:
    assert len(_native.time_convolution(**GOOD)) == 1
    with pytest.raises(ValueError, match=r"\w"):
        _native.time_convolution(**GOOD | bad)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), 1e9])
def test_a_peak_is_measured_for_some_time_but_not_for_ever(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        _native.measure_peak("plain", seconds)


def test_an_instruction_set_must_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert check_instruction_set("") == SETS[0]
    assert check_instruction_set("plain") == "plain"
    with pytest.raises(ConfigError, match=r"'quantum' does not run on this processor; use one of .*plain"):
        check_instruction_set("quantum")
    monkeypatch.setenv(VARIABLE, "quantum")
    with pytest.raises(ConfigError, match="quantum"):
        check_instruction_set("")


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_step_is_timed_and_the_environment_is_as_before(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    result = run_step(
        step("resnet8 n4 keep.5 3x16x16"), threads=1, instruction_set="plain", seconds=0.001, backend=backend
    )
    assert result.problem == "resnet8 n4 3x16x16 keep.5"
    assert result.figures.timing.repeats >= 3
    assert result.images_per_s == pytest.approx(4 / result.figures.timing.median_s)
    assert result.arena_bytes > 100_000
    assert VARIABLE not in os.environ
