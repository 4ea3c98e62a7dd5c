from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.device import Trace
from distreal_edge.simulate.board import VirtualBoard, core_seconds_of

MACS_PER_S = 100.0


def board_of(trace: Trace, start_s: float = 0.0, overhead_macs: float = 0.0) -> VirtualBoard:
    return VirtualBoard(trace, start_s=start_s, macs_per_s=MACS_PER_S, overhead_macs=overhead_macs)


def seconds_by_brute_force(trace: Trace, start_s: float, core_seconds: float, threads: int) -> float:
    """Add up free cores in steps of a 64th of a second, at whose borders alone these traces change."""
    done, step = 0.0, 0
    while True:
        now_s = start_s + step / 64
        cores = min(threads, trace.cores[max(i for i, second in enumerate(trace.seconds) if second <= now_s)])
        if done + cores / 64 >= core_seconds - 1e-12:
            return step / 64 + (core_seconds - done) / cores
        done, step = done + cores / 64, step + 1


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 64), min_size=1, max_size=6),
    cores=st.lists(st.sampled_from([0.0, 1e-6, 0.25, 0.5, 1.0, 3.5]), min_size=6, max_size=6),
    start=st.integers(0, 200),
    macs=st.integers(1, 400),
    overhead=st.integers(0, 50),
    threads=st.integers(1, 4),
)
def test_a_mini_batch_takes_until_the_cores_that_were_free_add_up_to_its_work(
    gaps: list[int], cores: list[float], start: int, macs: int, overhead: int, threads: int
) -> None:
    seconds = np.concatenate([[0], np.cumsum(gaps)]) / 64
    trace = Trace(tuple(seconds.tolist()), (*cores[: len(gaps)], 2.0))
    board = board_of(trace, start / 64, float(overhead))
    ran = board.run(lambda threads: threads, threads, macs)
    core_seconds = (macs + overhead) / MACS_PER_S
    assert ran.core_seconds == pytest.approx(core_seconds)
    assert ran.seconds == pytest.approx(seconds_by_brute_force(trace, start / 64, core_seconds, threads), abs=1e-9)


def test_work_runs_on_one_thread_whatever_the_board_has() -> None:
    assert board_of(Trace((0.0,), (8.0,))).run(lambda threads: threads, 8, 100).result == 1


def test_work_without_multiply_accumulates_takes_no_time() -> None:
    ran = board_of(Trace((0.0,), (0.5,)), overhead_macs=7.0).run(lambda _threads: "measured", 1)
    assert (ran.result, ran.seconds, ran.core_seconds) == ("measured", 0.0, 0.0)


def test_running_does_not_move_the_clock_and_waiting_never_moves_it_back() -> None:
    board = board_of(Trace((0.0,), (1.0,)), start_s=5.0)
    board.run(lambda _threads: 0, 1, 100)
    assert board.now() == 5.0
    board.wait_until(6.5, lambda: False)
    board.wait_until(3.0, lambda: False)
    assert board.now() == 6.5


def test_work_on_a_board_whose_cores_never_come_back_never_ends() -> None:
    assert math.isinf(board_of(Trace((0.0, 1.0), (1.0, 0.0))).run(lambda _threads: 0, 1, 200).seconds)


def test_availability_is_what_the_trace_has_at_that_time_memory_included() -> None:
    board = board_of(Trace((0.0, 10.0), (1.0, 0.25), (None, 4e6)), start_s=9.0)
    assert (board.availability().cores, board.availability().memory_bytes) == (1.0, None)
    board.wait_until(10.0, lambda: False)
    assert (board.availability().cores, board.availability().memory_bytes) == (0.25, 4e6)


def test_a_mini_batch_has_its_overhead_whatever_it_trains() -> None:
    narrow = core_seconds_of(10.0, macs_per_s=MACS_PER_S, overhead_macs=40.0)
    wide = core_seconds_of(100.0, macs_per_s=MACS_PER_S, overhead_macs=40.0)
    assert (narrow, wide) == (pytest.approx(0.5), pytest.approx(1.4))
