from __future__ import annotations

import time

import pytest

from distreal_edge.bench import Timing, repeat, timed


def test_a_timing_is_the_median_the_minimum_and_the_middle_half() -> None:
    timing = Timing.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert timing == Timing(median_s=3.0, minimum_s=1.0, spread=pytest.approx(2.0 / 3.0), repeats=5)


def test_runs_fill_the_time() -> None:
    asked: list[int] = []

    def measure(count: int) -> list[float]:
        asked.append(count)
        return [0.01] * count

    assert repeat(measure, 1.0).repeats == 100
    assert repeat(measure, 0.001).repeats == 3
    assert asked == [3, 100, 3]


def test_each_run_is_timed_by_itself() -> None:
    seconds = timed(lambda: time.sleep(0.005), 3)
    assert len(seconds) == 3
    assert all(second >= 0.005 for second in seconds)
