from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

import pytest

from distreal_edge.device import Availability, RealBoard, Trace, TraceBoard

if TYPE_CHECKING:
    from collections.abc import Callable


def burn(seconds: float) -> Callable[[int], float]:
    """Make work that takes so much CPU time of its thread, however busy the machine is."""

    def work(threads: int) -> float:
        end_s = time.thread_time() + seconds
        while time.thread_time() < end_s:
            pass
        return float(threads)

    return work


class FourCores:
    def sample(self) -> Availability:
        return Availability(4.0, 1e9)

    def quiet_cpus(self) -> tuple[int, ...]:
        return ()


def never() -> bool:
    return False


def test_an_emulated_board_takes_as_long_as_its_cores_say() -> None:
    board = TraceBoard(Trace((0.0,), (0.5,)), core_speed=0.1, stop=threading.Event())
    ran = board.run(burn(0.02), 1)
    assert ran.result == 1.0
    assert ran.core_seconds == pytest.approx(0.2, rel=0.2)
    assert ran.seconds == pytest.approx(ran.core_seconds / 0.5)


def test_an_emulated_board_uses_no_more_cores_than_threads_and_one_thread_here() -> None:
    board = TraceBoard(Trace((0.0,), (4.0,)), core_speed=1.0, stop=threading.Event())
    ran = board.run(burn(0.02), 2)
    assert ran.result == 1.0
    assert ran.seconds == pytest.approx(ran.core_seconds / 2)


def test_an_emulated_board_without_cores_does_not_make_anybody_wait_in_run() -> None:
    board = TraceBoard(Trace((0.0,), (0.0,)), core_speed=1.0, stop=threading.Event())
    assert board.availability() == Availability(0.0)
    assert board.run(burn(0.0), 1).seconds == math.inf


def test_an_emulated_board_has_the_memory_and_the_heat_of_its_trace() -> None:
    board = TraceBoard(Trace((0.0,), (2.0,), (5e8,), (61.5,)), core_speed=1.0, stop=threading.Event())
    assert board.availability() == Availability(2.0, memory_bytes=5e8, temperature_c=61.5)


def test_a_real_board_counts_the_cpu_time_of_the_work_and_not_that_of_a_wait() -> None:
    def work(threads: int) -> float:
        time.sleep(0.3)
        return burn(0.02)(threads)

    ran = RealBoard(FourCores()).run(work, 2)  # type: ignore[arg-type]
    assert ran.result == 2.0
    assert ran.seconds >= 0.32
    assert 0.02 <= ran.core_seconds < 0.3


@pytest.mark.parametrize("kind", ["real", "trace"])
def test_a_wait_ends_at_its_time_and_is_over_at_once_when_that_has_passed(kind: str) -> None:
    board = (
        RealBoard(FourCores())  # type: ignore[arg-type]
        if kind == "real"
        else TraceBoard(Trace((0.0,), (1.0,)), core_speed=1.0, stop=threading.Event())
    )
    until_s = board.now() + 0.12
    board.wait_until(until_s, never)
    assert board.now() >= until_s
    board.wait_until(0.0, lambda: pytest.fail("was asked although the time had passed"))


@pytest.mark.parametrize("kind", ["real", "trace"])
def test_a_wait_ends_when_it_is_no_longer_wanted(kind: str) -> None:
    board = (
        RealBoard(FourCores())  # type: ignore[arg-type]
        if kind == "real"
        else TraceBoard(Trace((0.0,), (1.0,)), core_speed=1.0, stop=threading.Event())
    )
    stop = threading.Event()
    waiting = threading.Thread(target=board.wait_until, args=(board.now() + 60.0, stop.is_set))
    waiting.start()
    stop.set()
    waiting.join(5.0)
    assert not waiting.is_alive()


def test_the_stop_event_ends_the_wait_of_an_emulated_board() -> None:
    stop = threading.Event()
    stop.set()
    board = TraceBoard(Trace((0.0,), (1.0,)), core_speed=1.0, stop=stop)
    began_s = time.monotonic()
    board.wait_until(board.now() + 60.0, never)
    assert time.monotonic() - began_s < 5.0


def test_a_time_in_three_thousand_years_is_waited_for_without_complaint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: failed.set())
    board = RealBoard(FourCores())  # type: ignore[arg-type]
    with board.call_at(1e11, failed.set):
        assert not failed.wait(0.2)
