from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.machine import Conditions, Counters, MachineReader, Roots, read_text

MOUNTINFO = (
    b"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    b"31 23 0:27 / /sys/one rw - cgroup cgroup rw,cpu,cpuacct,memory\n"
)
# Every file that is read, with content of the usual form.
USUAL = {
    "proc/stat": b"cpu0 100 0 100 100 0 0 0 0 0 0\n",
    "proc/meminfo": b"MemAvailable: 1000 kB\n",
    "proc/pressure/cpu": b"some avg10=0 avg60=0 avg300=0 total=100\n",
    "proc/self/cgroup": b"1:cpu,cpuacct,memory:/\n0::/own\n",
    "proc/self/mountinfo": MOUNTINFO,
    "proc/self/statm": b"100 10 5 1 0 1 0\n",
    "proc/self/task/5/schedstat": b"100 100 1\n",
    "sys/fs/cgroup/own/cpu.max": b"50000 100000\n",
    "sys/fs/cgroup/own/cpu.stat": b"usage_usec 100\n",
    "sys/fs/cgroup/own/cpuset.cpus.effective": b"0\n",
    "sys/fs/cgroup/own/memory.max": b"1000\n",
    "sys/fs/cgroup/own/memory.current": b"500\n",
    "sys/fs/cgroup/own/memory.stat": b"inactive_file 5\n",
    "sys/one/cpu.cfs_quota_us": b"50000\n",
    "sys/one/cpu.cfs_period_us": b"100000\n",
    "sys/one/cpuacct.usage": b"100\n",
    "sys/one/memory.limit_in_bytes": b"1000\n",
    "sys/one/memory.usage_in_bytes": b"10\n",
    "sys/class/thermal/thermal_zone0/temp": b"50000\n",
    "sys/class/hwmon/hwmon0/name": b"coretemp\n",
    "sys/class/hwmon/hwmon0/temp1_input": b"50000\n",
    "sys/class/power_supply/BAT0/type": b"Battery\n",
    "sys/class/power_supply/BAT0/status": b"Discharging\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": b"0\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": b"1\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": b"2\n",
}
digits = st.from_regex(rb"\A-?[0-9]{1,30}(\n|\Z)")
broken = st.one_of(
    st.binary(max_size=40),
    digits,
    # A usual text in which something is replaced: most of it still has the form that is looked for.
    st.tuples(
        st.sampled_from(sorted(USUAL.values())), st.integers(0, 60), st.one_of(digits, st.binary(max_size=8))
    ).map(lambda given: given[0][: given[1]] + given[2] + given[0][given[1] + 1 :]),
)


def read_twice(roots: Roots) -> tuple[Counters, Conditions]:
    """Return what the second look sees: our own waiting is looked at only when somebody's has risen."""
    time_s = iter((0.0, 0.0))
    reader = MachineReader(roots, affinity=lambda: {0, 1}, clock=lambda: next(time_s))
    reader.counters()
    return reader.counters(), reader.conditions()


@pytest.fixture
def usual(tmp_path: Path) -> Path:
    """Return the root of a machine whose files are all there."""
    for file, content in USUAL.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    return tmp_path


def test_whatever_stands_in_the_files_nothing_raises_and_every_number_is_one(usual: Path) -> None:
    roots = Roots(usual / "proc", usual / "sys")

    @settings(deadline=None)  # files take as long as the disk does
    @given(odd=st.dictionaries(st.sampled_from(sorted(USUAL)), st.one_of(st.none(), broken), max_size=6))
    def check(odd: dict[str, bytes | None]) -> None:
        for file, content in odd.items():
            (usual / file).unlink()
            if content is None:
                (usual / file).mkdir()  # a folder stands where a file should be
            else:
                (usual / file).write_bytes(content)
        try:
            counters, conditions = read_twice(roots)
        finally:
            for file, content in odd.items():
                if content is None:
                    (usual / file).rmdir()
                (usual / file).write_bytes(USUAL[file])
        assert counters.allowed <= {0, 1}
        assert counters.allowed
        numbers = [*counters.busy_s.values(), *(counters.own_waits_s or {}).values()]
        numbers += [quota.cores for quota in counters.quotas]
        numbers += [conditions.temperature_c or 0.0, counters.waited_s or 0.0]
        assert all(math.isfinite(number) for number in numbers)
        assert conditions.memory_bytes is None or conditions.memory_bytes >= 0

    check()


def test_the_usual_files_are_all_read(usual: Path) -> None:
    # Otherwise the test above would only look at how absent files are treated.
    counters, conditions = read_twice(Roots(usual / "proc", usual / "sys"))
    assert counters.allowed == {0}
    assert (counters.busy_s, counters.waited_s, counters.own_waits_s) == ({0: 2.0}, 1e-4, {5: 1e-7})
    assert [(quota.cores, quota.used_s) for quota in counters.quotas] == [(0.5, 1e-7), (0.5, 1e-4)]
    assert conditions.memory_bytes == 505
    assert (conditions.temperature_c, conditions.throttled, conditions.on_battery) == (50.0, True, True)


def test_a_file_that_may_not_be_read_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "none", tmp_path, tmp_path / "loop", tmp_path / "zero\0byte", Path("/proc/self/mem")):
        assert read_text(path) is None


@pytest.mark.timeout(20)
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "pipe") == ""


def test_a_file_without_end_is_cut() -> None:
    assert read_text("/dev/zero") == ""
