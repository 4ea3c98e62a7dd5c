"""A guest's manners, looked at from outside of the process that has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from distreal_edge.device import Monitor, RealBoard
from distreal_edge.device.guest import confine_threads
from distreal_edge.device.spare import quiet_cpus
from distreal_edge.machine import Counters

TELLS = """
import json, os, threading, psutil
from distreal_edge.device import become_guest
def group():
    # Absent in a kernel without such groups, empty for a process that is in none.
    found = open("/proc/self/autogroup").read().split() if os.path.exists("/proc/self/autogroup") else []
    return found[-1] if found else None
before = group()
become_guest()
def tell():
    print(json.dumps({
        "policy": os.sched_getscheduler(0), "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "disk": int(psutil.Process(threading.get_native_id()).ionice().ioclass),
        "autogroup": group(), "before": before}))
thread = threading.Thread(target=tell)
thread.start()
thread.join()
"""


def told(*, own_session: bool) -> dict[str, object]:
    command = [sys.executable, "-c", TELLS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=own_session)
    assert done.stderr == ""
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_guest_and_the_threads_it_starts_have_the_lowest_priority_for_processor_and_disk() -> None:
    guest = told(own_session=True)
    assert (guest["policy"], guest["nice"], guest["disk"]) == (os.SCHED_IDLE, 19, 3)
    assert guest["autogroup"] in {None, "19"}


def test_a_session_that_is_shared_with_others_keeps_its_share() -> None:
    guest = told(own_session=False)
    assert guest["nice"] == 19
    assert guest["before"] == guest["autogroup"]


def test_all_threads_but_the_main_one_are_confined() -> None:
    allowed = os.sched_getaffinity(os.getpid())
    if len(allowed) < 2:
        pytest.skip("needs two CPUs")
    seen: list[set[int]] = []
    begin, look = threading.Event(), threading.Event()

    def work() -> None:
        begin.set()
        look.wait()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    begin.wait()
    try:
        confine_threads({min(allowed)})
        look.set()
        thread.join()
        assert seen == [{min(allowed)}]
        assert os.sched_getaffinity(os.getpid()) == allowed
    finally:
        confine_threads(allowed)


def test_a_cpu_that_is_gone_is_no_reason_to_stop() -> None:
    confine_threads({8191})


def counters(time_s: float, busy_s: dict[int, float], own_s: float) -> Counters:
    return Counters(time_s=time_s, allowed=frozenset(busy_s), busy_s=busy_s, own_s=own_s)


@pytest.mark.parametrize(
    ("busy_s", "own_s", "confined", "order"),
    [
        ({0: 1.0, 1: 0.0, 2: 0.5}, 0.0, set(), (1, 2, 0)),
        ({0: 1.0, 1: 0.0, 2: 0.5}, 1.0, {0}, (0, 1, 2)),  # what CPU 0 does is our own work
        ({0: 1.0, 1: 1.0, 2: 0.0}, 1.0, {0}, (0, 2, 1)),  # as quiet as CPU 2, and nothing has to move
        ({0: 0.05, 1: 0.0, 2: 0.0}, 0.0, {0}, (0, 1, 2)),  # a hundredth or two say nothing
    ],
)
def test_the_cpus_that_others_use_least_come_first(
    busy_s: dict[int, float], own_s: float, confined: set[int], order: tuple[int, ...]
) -> None:
    before = counters(10.0, dict.fromkeys(busy_s, 0.0), 0.0)
    assert quiet_cpus(before, counters(11.0, busy_s, own_s), frozenset(confined)) == order


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_work_on_a_real_board_runs_on_as_many_cpus_as_it_has_threads() -> None:
    allowed = os.sched_getaffinity(os.getpid())
    board = RealBoard(Monitor())
    found: list[set[int]] = []

    def work(_threads: int) -> float:
        found.append(os.sched_getaffinity(0))
        return 0.0

    def train() -> None:
        board.run(work, 1)
        board.run(work, 2)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    try:
        assert [len(cpus) for cpus in found] == [1, 2]
        assert all(cpus <= allowed for cpus in found)
    finally:
        confine_threads(allowed)


def test_what_work_took_is_cpu_time_and_never_nothing() -> None:
    board = RealBoard(Monitor())
    idle = board.run(lambda _threads: float(threading.Event().wait(0.2)), 1)
    assert idle.core_seconds < 0.15 <= idle.seconds
    assert board.run(lambda _threads: 0.0, 1).core_seconds > 0.0
