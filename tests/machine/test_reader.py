from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distreal_edge.machine import Conditions, MachineReader, Roots

V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
GROUP = "/sys/fs/cgroup/own"
MACHINE = {
    "/proc/stat": "cpu0 100 0 0 9 0 0 0 0\ncpu1 200 0 0 9 0 0 0 0\nintr 5\n",
    "/proc/self/mountinfo": V2,
    "/proc/self/cgroup": "0::/own\n",
    f"{GROUP}/cpu.max": "50000 100000\n",
    f"{GROUP}/cpu.stat": "usage_usec 250000\n",
}


def test_counters_are_of_one_moment(lay: Any) -> None:
    reader = MachineReader(lay(MACHINE), affinity=lambda: [0, 1], own_s=lambda: 0.125, clock=lambda: 7.0)
    counters = reader.counters()
    assert (counters.time_s, counters.own_s, counters.allowed) == (7.0, 0.125, {0, 1})
    assert counters.busy_s == {0: 1.0, 1: 2.0}
    assert [(quota.cores, quota.used_s) for quota in counters.quotas] == [(0.5, 0.25)]
    assert (counters.waited_s, counters.own_waits_s) == (None, None)


def test_a_cpuset_narrows_the_affinity_and_one_that_shares_no_cpu_with_it_is_not_believed(lay: Any) -> None:
    roots = lay(MACHINE | {f"{GROUP}/cpuset.cpus.effective": "1-2\n"})
    assert MachineReader(roots, affinity=lambda: [0, 1]).counters().allowed == {1}
    assert MachineReader(roots, affinity=lambda: [5]).counters().allowed == {5}


def test_a_cpuset_that_is_widened_counts_at_once_and_a_narrowed_one_with_the_conditions(lay: Any) -> None:
    reader = MachineReader(lay(MACHINE | {f"{GROUP}/cpuset.cpus.effective": "0\n"}), affinity=lambda: [0, 1])
    assert reader.counters().allowed == {0}
    lay({f"{GROUP}/cpuset.cpus.effective": "0-1\n"})
    assert reader.counters().allowed == {0, 1}
    lay({f"{GROUP}/cpuset.cpus.effective": "1\n"})
    reader.conditions()
    assert reader.counters().allowed == {1}


def test_our_own_waiting_is_looked_at_when_somebodys_has_risen(lay: Any) -> None:
    time_s = 0.0
    reader = MachineReader(lay(MACHINE), affinity=lambda: [0], clock=lambda: time_s)

    def look(at_s: float, waited_us: int) -> tuple[float | None, Any]:
        nonlocal time_s
        time_s = at_s
        lay(
            {
                "/proc/pressure/cpu": f"some avg10=0.00 avg60=0.00 avg300=0.00 total={waited_us}\n",
                "/proc/self/task/71/schedstat": f"5 {waited_us}000 1\n",
            }
        )
        counters = reader.counters()
        return counters.waited_s, counters.own_waits_s

    assert look(0.0, 1000000) == (1.0, None)
    assert look(0.25, 1004000) == (1.004, None)
    assert look(0.5, 1009500) == (1.0095, {71: 1.0095})
    assert look(0.75, 1009500) == (1.0095, None)


def test_conditions_are_read_together(lay: Any) -> None:
    firmware = "/sys/devices/platform/soc/soc:firmware/get_throttled"
    battery = "/sys/class/power_supply/BAT0"
    frequency = "/sys/devices/system/cpu/cpufreq/policy0"
    reader = MachineReader(lay({"/sys/class/thermal/thermal_zone0/temp": "83700\n"}))
    assert reader.conditions() == Conditions(temperature_c=83.7)
    lay({firmware: "8\n"})
    assert reader.conditions() == Conditions(temperature_c=83.7, throttled=True)
    lay({firmware: "0\n", f"{battery}/type": "Battery\n", f"{battery}/status": "Discharging\n"})
    assert reader.conditions() == Conditions(temperature_c=83.7, on_battery=True)
    lay({f"{frequency}/scaling_max_freq": "6\n", f"{frequency}/cpuinfo_max_freq": "18\n"})
    assert reader.conditions() == Conditions(temperature_c=83.7, throttled=True, on_battery=True)
    lay({"/proc/meminfo": "MemAvailable: 100 kB\n", "/proc/self/statm": "9 2 1 1 0 1 0\n"})
    conditions = reader.conditions()
    assert conditions.memory_bytes == 102400
    assert conditions.resident_bytes is not None


def test_a_machine_without_files_has_the_cpus_that_we_are_told_and_no_conditions(lay: Any) -> None:
    reader = MachineReader(lay({}), affinity=lambda: [0, 3])
    counters = reader.counters()
    assert (counters.allowed, counters.busy_s, counters.quotas) == ({0, 3}, {}, ())
    assert reader.conditions() == Conditions()


def test_this_machine_can_be_read() -> None:
    reader = MachineReader(Roots())
    before, after = reader.counters(), reader.counters()
    assert after.time_s > before.time_s
    assert after.own_s >= before.own_s
    for cpu in after.allowed:
        assert after.busy_s[cpu] >= before.busy_s[cpu]
    conditions = reader.conditions()
    assert conditions.memory_bytes is not None
    assert conditions.resident_bytes is not None
    assert conditions.resident_bytes == pytest.approx(_resident_bytes(), rel=0.2)


def _resident_bytes() -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024
