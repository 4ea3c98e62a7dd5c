from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distreal_edge.device import Availability, Monitor, OwnerLimits, QuietHours
from distreal_edge.machine import Roots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
HELD = 100 * PAGE
"""What the process holds before it trains."""


class Machine:
    """A machine of files that a test changes, and a clock that it turns by hand."""

    def __init__(self, root: Path, cpus: int = 4) -> None:
        self.roots = Roots(root / "proc", root / "sys")
        self.root = root
        self.allowed = set(range(cpus))
        self.busy_s = dict.fromkeys(range(cpus), 0.0)
        self.time_s = self.own_s = 0.0
        self.minute = 15 * 60
        self.reads = 0
        self.write("/proc/meminfo", "MemAvailable: 1000 kB\n")
        self.write("/proc/self/statm", "900 100 10 1 0 1 0\n")
        self.pass_time(0.0)

    def write(self, name: str, text: str) -> None:
        path = self.root / name.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def pass_time(self, seconds: float, *, own: float = 0.0, others: float = 0.0) -> None:
        """Let time pass in which we use `own` cores, and others use `others`, evenly on all CPUs."""
        self.time_s += seconds
        self.own_s += own * seconds
        for cpu in self.busy_s:
            self.busy_s[cpu] += (own + others) * seconds / len(self.busy_s)
        lines = [f"cpu{cpu} {round(busy * TICKS)} 0 0 0 0 0 0 0 0 0\n" for cpu, busy in self.busy_s.items()]
        self.write("/proc/stat", "cpu 0 0 0 0 0 0 0 0 0 0\n" + "".join(lines))

    def affinity(self) -> set[int]:
        self.reads += 1
        return self.allowed

    def monitor(self, limits: OwnerLimits | None = None) -> Monitor:
        return Monitor(
            limits,
            roots=self.roots,
            affinity=self.affinity,
            own_s=lambda: self.own_s,
            clock=lambda: self.time_s,
            minute=lambda: self.minute,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_others_use_is_not_available_and_what_we_use_is(machine: Machine) -> None:
    monitor = machine.monitor()
    assert monitor.sample() == Availability(4.0, 1024000.0)
    machine.pass_time(0.5, own=2.0, others=1.6)
    assert monitor.sample().cores == pytest.approx(2.4)
    machine.pass_time(0.5, own=2.4, others=0.0)
    assert monitor.sample().cores == pytest.approx(4.0)


def test_the_owners_limit_caps_what_is_free(machine: Machine) -> None:
    monitor = machine.monitor(OwnerLimits(most_cores=2.0))
    assert monitor.sample().cores == 2.0
    machine.pass_time(1.0, own=2.0, others=1.0)
    assert monitor.sample().cores == 2.0
    machine.pass_time(1.0, own=2.0, others=3.0)
    assert monitor.sample().cores == pytest.approx(1.0)


def test_a_busy_machine_still_leaves_crumbs_and_a_smaller_limit_leaves_less(machine: Machine) -> None:
    monitor, small = machine.monitor(), machine.monitor(OwnerLimits(most_cores=0.01))
    machine.pass_time(1.0, own=0.0, others=4.1)
    assert monitor.sample().cores == 0.05
    assert small.sample().cores == 0.01


def test_counters_are_read_at_most_four_times_a_second(machine: Machine) -> None:
    monitor = machine.monitor()
    for _ in range(100):
        machine.pass_time(0.01, own=1.0, others=1.0)
        monitor.sample()
    assert machine.reads <= 5


@pytest.mark.parametrize("step_s", [0.25, 0.26, 0.3])
@pytest.mark.parametrize("phase_s", [0.0, 0.05, 0.2])
def test_a_change_shows_in_full_within_a_second(machine: Machine, step_s: float, phase_s: float) -> None:
    monitor = machine.monitor()
    for _ in range(8):
        machine.pass_time(step_s)
        monitor.sample()
    machine.pass_time(phase_s)
    since_s = 0.0
    machine.pass_time(step_s - phase_s, others=2.0)
    monitor.sample()
    since_s += step_s - phase_s
    while since_s + step_s <= 1.0:
        machine.pass_time(step_s, others=2.0)
        monitor.sample()
        since_s += step_s
    assert monitor.sample().cores == pytest.approx(2.0, abs=0.15)


def test_a_steady_load_stays_steady_although_linux_counts_in_hundredths(machine: Machine) -> None:
    monitor = machine.monitor()
    seen = []
    for _ in range(40):
        machine.pass_time(0.2503, others=1.3)
        seen.append(monitor.sample().cores)
    assert seen[2:] == pytest.approx([2.7] * 38, abs=0.1)


def test_whoever_asks_seldom_gets_the_average_since_the_last_question(machine: Machine) -> None:
    monitor = machine.monitor()
    machine.pass_time(6.0, others=1.0)
    machine.pass_time(2.0, others=3.0)
    assert monitor.sample().cores == pytest.approx(2.5)


def test_cpus_that_are_given_to_us_or_taken_away_count_at_once(machine: Machine) -> None:
    monitor = machine.monitor()
    machine.pass_time(1.0, others=1.0)
    machine.allowed = {0, 1}
    assert monitor.sample().cores == pytest.approx(1.5)
    machine.pass_time(1.0, others=0.4)
    assert monitor.sample().cores == pytest.approx(1.8)
    machine.allowed = {0, 1, 2, 3}
    machine.pass_time(1.0, others=0.4)
    assert monitor.sample().cores == pytest.approx(3.6)


GROUP = "/sys/fs/cgroup/system.slice/distreal.service"


@pytest.fixture
def service(machine: Machine) -> Machine:
    """Put the process into a service of systemd, on cgroup v2."""
    machine.write("/proc/self/cgroup", "0::/system.slice/distreal.service\n")
    machine.write("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    machine.write(f"{GROUP}/cpu.max", "150000 100000\n")
    machine.write(f"{GROUP}/cpu.stat", "usage_usec 0\n")
    return machine


def test_a_services_quota_is_shared_with_whoever_else_is_in_it(service: Machine) -> None:
    monitor = service.monitor()
    assert monitor.sample().cores == 1.5
    service.pass_time(0.5, own=1.0, others=0.4)
    service.write(f"{GROUP}/cpu.stat", "usage_usec 650000\n")  # we, and 0.3 cores of a process beside us
    assert monitor.sample().cores == pytest.approx(1.2)


def test_a_quota_that_is_set_while_we_run_counts_with_the_next_sample(service: Machine) -> None:
    monitor = service.monitor()
    service.write(f"{GROUP}/cpu.max", "50000 100000\n")
    service.pass_time(0.25)
    assert monitor.sample().cores == 0.5
    service.write(f"{GROUP}/cpu.max", "max 100000\n")
    service.pass_time(0.25)
    assert monitor.sample().cores == pytest.approx(4.0)


def test_a_process_that_is_moved_to_another_group_has_that_ones_limits(service: Machine) -> None:
    monitor = service.monitor()
    service.write("/proc/self/cgroup", "0::/elsewhere\n")
    service.write("/sys/fs/cgroup/elsewhere/cpu.max", "80000 100000\n")
    service.write("/sys/fs/cgroup/elsewhere/cpuset.cpus.effective", "1\n")
    service.pass_time(0.25)
    assert monitor.sample().cores == pytest.approx(0.8)
    service.write("/sys/fs/cgroup/elsewhere/cpu.max", "max 100000\n")
    service.pass_time(0.25)
    assert monitor.sample().cores == pytest.approx(1.0)


def test_memory_is_the_least_of_machine_groups_and_owner(service: Machine) -> None:
    assert service.monitor().sample().memory_bytes == 1024000.0
    service.write(f"{GROUP}/memory.max", "900000\n")
    service.write(f"{GROUP}/memory.current", "200000\n")
    assert service.monitor().sample().memory_bytes == 700000.0
    limits = OwnerLimits(most_memory_bytes=HELD + 5000.0)
    assert service.monitor(limits).sample().memory_bytes == 5000.0
    (service.root / "proc/meminfo").unlink()
    assert service.monitor(limits).sample().memory_bytes == 5000.0
    assert service.monitor().sample().memory_bytes is None


def test_what_training_holds_is_not_taken_from_what_it_may_hold(machine: Machine) -> None:
    monitor = machine.monitor(OwnerLimits(most_memory_bytes=HELD + 600000.0))
    unlimited = machine.monitor()
    machine.write("/proc/self/statm", "900 200 10 1 0 1 0\n")
    machine.write("/proc/meminfo", f"MemAvailable: {1000 - 100 * PAGE // 1024} kB\n")
    machine.pass_time(1.0)
    assert unlimited.sample().memory_bytes == 1024000.0
    assert monitor.sample().memory_bytes == 600000.0


def test_a_limit_of_memory_that_is_used_up_already_is_told_at_the_start(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    assert machine.monitor(OwnerLimits(most_memory_bytes=float(HELD))).sample().memory_bytes == 0.0
    assert caplog.messages == ["most_memory: 0 MB are held before any training, so only the cheapest row is trained"]


def test_heat_is_told_and_pauses_until_it_is_cooler(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    zone = "/sys/class/thermal/thermal_zone0/temp"
    machine.write(zone, "65000\n")
    monitor = machine.monitor(OwnerLimits(highest_temperature_c=70.0))
    assert monitor.sample() == Availability(4.0, 1024000.0, temperature_c=65.0)
    seen = []
    for thousandths in (70500, 72000, 66000, 64900):
        machine.write(zone, f"{thousandths}\n")
        machine.pass_time(1.0)
        available = monitor.sample()
        assert available.temperature_c == thousandths / 1000.0
        seen.append((available.cores, available.paused))
    hot = (0.0, "hotter than 70 degrees")
    assert seen == [hot, hot, hot, (4.0, None)]
    assert caplog.messages == ["training pauses: hotter than 70 degrees", "training resumes"]


def test_a_highest_temperature_without_a_sensor_is_told_at_the_start(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    assert machine.monitor(OwnerLimits(highest_temperature_c=70.0)).sample().cores == 4.0
    assert caplog.messages == ["highest_temperature_c: this machine tells no temperature, so it pauses nothing"]


def test_every_reason_to_pause_is_told_once_and_the_end_of_it(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = machine.root / "pause"
    monitor = machine.monitor(OwnerLimits(quiet_hours=(QuietHours(960, 1020),), pause_file=file))

    def look() -> str | None:
        for _ in range(4):  # conditions are looked at once a second
            machine.pass_time(0.25)
            available = monitor.sample()
        assert (available.cores == 0.0) == (available.paused is not None)
        return available.paused

    assert look() is None
    machine.minute = 960
    assert look() == "quiet hours 16:00-17:00"
    file.touch()
    assert look() == f"{file} exists"
    machine.minute = 1020
    file.unlink()
    assert look() is None
    machine.write("/sys/class/power_supply/BAT0/type", "Battery\n")
    machine.write("/sys/class/power_supply/BAT0/status", "Discharging\n")
    battery = look()
    assert battery is not None
    assert battery.startswith("on battery")
    machine.write("/sys/class/power_supply/BAT0/status", "Charging\n")
    assert look() is None
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "training pauses",
        "training pauses",
        "training resumes",
        "training pauses",
        "training resumes",
    ]


def test_quiet_hours_are_those_of_the_time_zone_that_the_machine_has_now(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = int(time.time() // 3600) % 24
    monkeypatch.setenv("TZ", "UTC")
    monitor = Monitor(
        OwnerLimits(quiet_hours=(QuietHours(hour * 60, hour * 60 + 120),)),
        roots=machine.roots,
        affinity=machine.affinity,
        clock=lambda: machine.time_s,
    )
    try:
        assert monitor.sample().paused is not None
        monkeypatch.setenv("TZ", "HERE+12")
        machine.pass_time(1.0)
        assert monitor.sample().paused is None
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_battery_that_may_be_used_is_told_all_the_same(machine: Machine) -> None:
    machine.write("/sys/class/power_supply/BAT0/type", "Battery\n")
    machine.write("/sys/class/power_supply/BAT0/status", "Discharging\n")
    available = machine.monitor(OwnerLimits(train_on_battery=True)).sample()
    assert (available.cores, available.on_battery, available.paused) == (4.0, True, None)


def test_throttling_is_told(machine: Machine) -> None:
    machine.write("/sys/devices/platform/soc/soc:firmware/get_throttled", "4\n")
    assert machine.monitor().sample().throttled


def test_a_pause_file_in_a_closed_folder_pauses(machine: Machine) -> None:
    folder = machine.root / "closed"
    folder.mkdir(mode=0o000)
    if os.geteuid() == 0:
        os.seteuid(65534)  # root may look into every folder
    try:
        paused = machine.monitor(OwnerLimits(pause_file=folder / "pause")).sample().paused
    finally:
        os.seteuid(os.getuid())
    folder.chmod(0o700)
    assert paused is not None
    assert "cannot be looked for" in paused


def test_an_empty_machine_lends_the_cpus_that_we_may_run_on(tmp_path: Path) -> None:
    time_s = iter(range(100))
    monitor = Monitor(
        roots=Roots(tmp_path / "proc", tmp_path / "sys"), affinity=lambda: {0, 1, 2}, clock=lambda: float(next(time_s))
    )
    for _ in range(5):
        assert monitor.sample() == Availability(3.0)


def test_two_threads_that_ask_at_once_do_not_read_the_counters_at_once(machine: Machine) -> None:
    inside, outside = threading.Event(), threading.Event()
    entered: list[str] = []

    def affinity() -> set[int]:
        entered.append(threading.current_thread().name)
        if len(entered) > 1:  # the first is the constructor's
            inside.set()
            outside.wait(10.0)
        return {0}

    monitor = Monitor(roots=machine.roots, affinity=affinity, clock=lambda: machine.time_s)
    machine.pass_time(1.0)
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


def test_a_thread_can_follow_until_it_is_told_to_stop() -> None:
    asked, stop = threading.Semaphore(0), threading.Event()

    def affinity() -> set[int]:
        asked.release()
        return {0}

    monitor = Monitor(affinity=affinity)
    following = threading.Thread(target=monitor.follow, args=(stop,))
    following.start()
    seen = [asked.acquire(timeout=10.0) for _ in range(4)]
    stop.set()
    following.join(10.0)
    assert all(seen)
    assert not following.is_alive()


def test_this_very_machine_can_be_sampled() -> None:
    monitor = Monitor()
    before = monitor.sample()
    time.sleep(0.3)
    for available in (before, monitor.sample()):
        assert 0.0 < available.cores <= len(os.sched_getaffinity(0))
        assert available.memory_bytes is not None
        assert available.memory_bytes > 0.0
        assert available.temperature_c is None or -40.0 <= available.temperature_c <= 150.0


@pytest.mark.slow
@pytest.mark.alone
def test_a_real_neighbour_that_keeps_a_cpu_busy_is_seen() -> None:
    monitor = Monitor(OwnerLimits(train_on_battery=True))
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
    """Return the mean availability over some seconds, the first samples left out: they are of the time before."""
    monitor.sample()
    give_up_s = time.monotonic() + seconds
    seen = []
    while time.monotonic() < give_up_s:
        time.sleep(0.25)
        seen.append(monitor.sample().cores)
    return sum(seen[2:]) / len(seen[2:])


CPU = "/sys/fs/cgroup/cpu"
# Moves itself into the groups that it is told, and says once a second what it may spend.
FOLLOWER = """
import json, os, sys, threading, time
from pathlib import Path
from distreal_edge.device import Monitor
from distreal_edge.machine import MachineReader, Roots
for group in sys.argv[1:]:
    (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
reader = MachineReader(Roots())
counters = reader.counters()
print(json.dumps({"quotas": [quota.cores for quota in counters.quotas], "cpus": sorted(counters.allowed),
                  "memory": reader.conditions().memory_bytes, "cores": Monitor().sample().cores}))
"""


@pytest.fixture
def hand_made() -> Iterator[Callable[[str], str]]:
    """Make groups of version 1 by hand, as root can where Linux has them; they are removed in the end."""
    made = []

    def make(controller: str) -> str:
        folder = Path("/sys/fs/cgroup", controller, f"distreal-test-{os.getpid()}")
        if not (folder.parent / "cgroup.procs").exists():
            pytest.skip(f"needs cgroup v1's {controller} controller, mounted at {folder.parent}")
        try:
            folder.mkdir()
        except OSError as error:
            pytest.skip(f"needs leave to make a group: {error.strerror}")
        made.append(folder)
        return str(folder)

    yield make
    for folder in made:
        folder.rmdir()


def _in_groups(*groups: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWER, *groups], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    said: dict[str, object] = json.loads(done.stdout)
    return said


def test_a_real_quota_is_seen_from_inside(hand_made: Callable[[str], str]) -> None:
    group = hand_made("cpu")
    Path(group, "cpu.cfs_quota_us").write_text("50000")
    said = _in_groups(group)
    assert said["quotas"] == [0.5]
    assert said["cores"] == 0.5


def test_a_real_cpuset_is_seen_from_inside(hand_made: Callable[[str], str]) -> None:
    last = max(os.sched_getaffinity(0))
    group = Path(hand_made("cpuset"))
    (group / "cpuset.mems").write_text("0")
    (group / "cpuset.cpus").write_text(str(last))
    said = _in_groups(str(group))
    assert said["cpus"] == [last]
    assert said["cores"] == 1.0


def test_a_real_limit_of_memory_is_seen_from_inside(hand_made: Callable[[str], str]) -> None:
    group = Path(hand_made("memory"))
    (group / "memory.limit_in_bytes").write_text(str(2**28))
    memory = _in_groups(str(group))["memory"]
    assert isinstance(memory, int)
    assert 2**27 < memory <= 2**28
