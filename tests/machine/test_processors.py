from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from distreal_edge.machine import Roots, own_affinity, parse_cpus, read_busy_seconds

STAT = """\
cpu  600 60 300 90000 50 10 20 30 400 40
cpu0 100 10 50 40000 20 1 2 3 70 7
cpu2 500 50 250 50000 30 9 18 27 330 33
intr 99 1 2 3
ctxt 5
cpu9 1 1 1 1 1 1 1 1 1 1
"""


def test_everything_but_idling_and_waiting_for_a_disk_is_busy_and_a_guest_counts_once(lay: Any) -> None:
    assert read_busy_seconds(lay({"/proc/stat": STAT})) == {
        0: pytest.approx(1.66),
        2: pytest.approx(8.54),
    }


def test_a_cpu_that_is_switched_off_does_not_rename_those_behind_it(lay: Any) -> None:
    assert sorted(read_busy_seconds(lay({"/proc/stat": STAT})) or {}) == [0, 2]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None),
        ("cpu 1 2 3 4\n", None),
        ("cpux 1 2 3 4 5\n", None),
        ("cpu-1 1 2 3 4 5\n", None),
        ("cpu0\n", None),
        ("cpu0 1 2 3 4\n", {0: 0.06}),  # Linux 2.4
        ("cpu0 100 x 100 4 5 6 7 8\n", {0: 2.21}),
        ("cpu0 99999999999999999999999 100 0 0 0 0 0 0\n", {0: 1.0}),
        ("cpu0 1 2 3\ncpu1 100 0 0 0\n", {1: 1.0}),
    ],
)
def test_odd_lines_are_left_out(lay: Any, text: str, seconds: dict[int, float] | None) -> None:
    found = read_busy_seconds(lay({"/proc/stat": text}))
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_nothing_is_known_without_the_file(lay: Any) -> None:
    assert read_busy_seconds(lay({})) is None


def test_this_machine_names_every_cpu_that_we_may_run_on() -> None:
    busy_s = read_busy_seconds(Roots())
    assert busy_s is not None
    assert own_affinity() <= busy_s.keys()
    assert all(seconds >= 0.0 for seconds in busy_s.values())


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3", {0, 1, 2, 3}),
        ("0-1,5,7-8\n", {0, 1, 5, 7, 8}),
        ("4", {4}),
        ("", set()),
        ("3-1", None),
        ("0-", None),
        ("-1", None),
        ("a", None),
        ("0-999999999999", None),
        ("0,,1", None),
    ],
)
def test_lists_of_cpus_are_read(text: str, cpus: set[int] | None) -> None:
    assert parse_cpus(text) == cpus


def test_a_thread_that_confines_itself_takes_no_cpu_from_the_process() -> None:
    before = own_affinity()
    seen: list[frozenset[int]] = []

    def confine() -> None:
        os.sched_setaffinity(0, {min(before)})  # 0 is the calling thread
        seen.append(own_affinity())

    thread = threading.Thread(target=confine)
    thread.start()
    thread.join()
    assert seen == [before]
