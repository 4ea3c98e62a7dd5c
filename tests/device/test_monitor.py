from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from distreal_edge.device import Availability, Monitor
from distreal_edge.device.monitor import Readings, read_machine


class Machine:
    """Counters that a test moves by hand."""

    def __init__(self, cpus: int = 4) -> None:
        self.time_s = self.own_s = self.busy_s = 0.0
        self.cpus = cpus
        self.reads = 0

    def read(self) -> Readings:
        self.reads += 1
        return Readings(self.time_s, self.cpus, self.own_s, self.busy_s, 1000)

    def pass_time(self, seconds: float, *, own: float, others: float) -> None:
        """Let time pass in which we use `own` cores, and others use `others`."""
        self.time_s += seconds
        self.own_s += own * seconds
        self.busy_s += (own + others) * seconds

    def monitor(self, most_cores: float | None = None) -> Monitor:
        return Monitor(most_cores, read=self.read, clock=lambda: self.time_s)


def test_what_others_use_is_not_available_and_what_we_use_is() -> None:
    machine = Machine()
    monitor = machine.monitor()
    assert monitor.sample() == Availability(4.0, 1000.0)
    machine.pass_time(0.5, own=2.0, others=1.5)
    assert monitor.sample().cores == pytest.approx(2.5)
    machine.pass_time(0.5, own=2.5, others=0.0)
    assert monitor.sample().cores == pytest.approx(4.0)


def test_the_owners_limit_caps_what_is_free() -> None:
    machine = Machine()
    monitor = machine.monitor(2.0)
    assert monitor.sample().cores == 2.0
    machine.pass_time(1.0, own=2.0, others=1.0)
    assert monitor.sample().cores == 2.0
    machine.pass_time(1.0, own=2.0, others=3.0)
    assert monitor.sample().cores == pytest.approx(1.0)


def test_a_busy_machine_still_leaves_crumbs() -> None:
    machine = Machine()
    monitor = machine.monitor()
    machine.pass_time(1.0, own=0.0, others=4.1)
    assert monitor.sample().cores == 0.05


def test_counters_are_read_at_most_four_times_a_second() -> None:
    machine = Machine()
    monitor = machine.monitor()
    for _ in range(100):
        machine.pass_time(0.01, own=1.0, others=1.0)
        monitor.sample()
    assert machine.reads <= 5


def test_a_counter_of_ours_that_runs_ahead_does_not_make_more_cores_than_there_are() -> None:
    machine = Machine()
    monitor = machine.monitor()
    machine.time_s, machine.own_s = 1.0, 2.0  # the two counters are not read at the very same moment
    assert monitor.sample().cores == 4.0


def test_cpus_that_are_given_to_us_or_taken_away_count_at_once() -> None:
    machine = Machine(cpus=4)
    monitor = machine.monitor()
    machine.pass_time(1.0, own=0.0, others=1.0)
    machine.cpus = 2
    assert monitor.sample().cores == 2.0
    machine.pass_time(1.0, own=0.0, others=0.5)
    assert monitor.sample().cores == pytest.approx(1.5)


def test_two_threads_that_ask_at_once_do_not_read_the_counters_at_once() -> None:
    inside, outside = threading.Event(), threading.Event()
    clock_s = 0.0
    entered: list[str] = []

    def read() -> Readings:
        entered.append(threading.current_thread().name)
        if len(entered) > 1:  # the first is the constructor's
            inside.set()
            outside.wait(10.0)
        return Readings(clock_s, 1, 0.0, 0.0, 1)

    monitor = Monitor(read=read, clock=lambda: clock_s)
    clock_s = 1.0
    first, second = (threading.Thread(target=monitor.sample) for _ in range(2))
    first.start()
    assert inside.wait(10.0)
    second.start()
    second.join(0.1)
    waits = second.is_alive()
    outside.set()
    first.join(10.0)
    second.join(10.0)
    assert waits
    assert len(entered) == 2


def test_this_machines_counters_never_run_backwards() -> None:
    before = read_machine()
    time.sleep(0.05)
    after = read_machine()
    assert after.time_s > before.time_s
    assert after.cpus == len(os.sched_getaffinity(0))
    assert after.own_s >= before.own_s
    assert after.busy_s >= before.busy_s
    assert after.memory_bytes > 0


@pytest.mark.slow
def test_a_real_neighbour_that_keeps_a_cpu_busy_is_seen() -> None:
    monitor = Monitor()
    quiet = _watch(monitor, 2.0)
    spin = "print('on', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE, text=True) as neighbour:
        try:
            assert neighbour.stdout is not None
            assert neighbour.stdout.readline() == "on\n"
            busy = _watch(monitor, 3.0)
        finally:
            neighbour.kill()
    # Whoever else uses this machine is seen as well; a machine that is full already shows no difference.
    assert busy < max(quiet - 0.5, 0.2 * len(os.sched_getaffinity(0)))


def _watch(monitor: Monitor, seconds: float) -> float:
    """Return the mean availability over some seconds, the first sample left out: it is of the time before."""
    monitor.sample()
    give_up_s = time.monotonic() + seconds
    seen = []
    while time.monotonic() < give_up_s:
        time.sleep(0.25)
        seen.append(monitor.sample().cores)
    return sum(seen[1:]) / len(seen[1:])
