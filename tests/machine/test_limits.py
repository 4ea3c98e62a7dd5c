from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.machine import CpuGroup, MemoryGroup, read_cpuset, read_group_memory, read_quotas

if TYPE_CHECKING:
    from pathlib import Path


def cpu_group(lay: Any, version: int, files: dict[str, str]) -> CpuGroup:
    folder: Path = lay({f"/sys/group/{name}": text for name, text in files.items()}).sys / "group"
    return CpuGroup(folder, version, folder)


@pytest.mark.parametrize(
    ("version", "files", "cores", "used_s"),
    [
        (2, {"cpu.max": "50000 100000\n", "cpu.stat": "usage_usec 2500000\nuser_usec 1\n"}, 0.5, 2.5),
        (2, {"cpu.max": "250000 100000\n"}, 2.5, None),
        (2, {"cpu.max": "30000 100000\n", "cpu.stat": "nr_periods 3\n"}, 0.3, None),
        (2, {"cpu.max": "1000 20000\n", "cpu.stat": "usage_usec x\n"}, 0.05, None),
        (
            1,
            {"cpu.cfs_quota_us": "30000\n", "cpu.cfs_period_us": "100000\n", "cpuacct.usage": "1500000000\n"},
            0.3,
            1.5,
        ),
        (1, {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "200000\n"}, 2.0, None),
    ],
)
def test_a_quota_is_a_number_of_cores(
    lay: Any, version: int, files: dict[str, str], cores: float, used_s: float | None
) -> None:
    (quota,) = read_quotas([cpu_group(lay, version, files)])
    assert quota.cores == pytest.approx(cores)
    assert quota.used_s == used_s


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (2, {"cpu.max": "max 100000\n", "cpu.stat": "usage_usec 5\n"}),
        (2, {}),
        (2, {"cpu.max": ""}),
        (2, {"cpu.max": "50000\n"}),
        (2, {"cpu.max": "50000 0\n"}),
        (2, {"cpu.max": "nan nan\n"}),
        (1, {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}),
        (1, {"cpu.cfs_quota_us": "50000\n"}),
        (1, {"cpu.cfs_period_us": "100000\n"}),
        (1, {"cpu.max": "50000 100000\n"}),  # another version's file
    ],
)
def test_a_group_without_a_quota_that_can_be_read_limits_nothing(lay: Any, version: int, files: dict[str, str]) -> None:
    assert read_quotas([cpu_group(lay, version, files)]) == ()


def test_every_group_on_the_way_up_may_have_a_quota(lay: Any) -> None:
    root = lay(
        {
            "/sys/top/cpu.max": "100000 100000",
            "/sys/top/middle/cpu.max": "max 100000",
            "/sys/top/middle/own/cpu.max": "200000 100000",
        }
    ).sys
    folders = [root / "top" / "middle" / "own", root / "top" / "middle", root / "top"]
    quotas = read_quotas(CpuGroup(folder, 2, folder) for folder in folders)
    assert [(quota.group, quota.cores) for quota in quotas] == [(str(folders[0]), 2.0), (str(folders[2]), 1.0)]


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"own/cpuset.cpus.effective": "1-2\n", "cpuset.cpus.effective": "0-3\n"}, {1, 2}),
        ({"own/other": "", "cpuset.cpus.effective": "0-1\n"}, {0, 1}),
        ({"own/cpuset.cpus": "3\n", "own/cpuset.effective_cpus": "1\n"}, {1}),
        ({"own/cpuset.cpus": "3\n"}, {3}),
        ({"own/cpuset.cpus": "\n", "cpuset.cpus": "0-3\n"}, {0, 1, 2, 3}),
        ({"own/cpuset.cpus.effective": "all\n"}, None),
        ({}, None),
    ],
)
def test_the_innermost_group_that_names_cpus_decides(lay: Any, files: dict[str, str], cpus: set[int] | None) -> None:
    root = lay({f"/sys/{name}": text for name, text in files.items()}).sys
    assert read_cpuset([root / "own", root]) == cpus


PLENTY = 10**12


@pytest.mark.parametrize(
    ("version", "files", "room"),
    [
        (2, {"memory.max": "1000", "memory.current": "300"}, 700),
        (2, {"memory.max": "1000", "memory.high": "800", "memory.current": "300"}, 500),
        (2, {"memory.max": "max", "memory.high": "800", "memory.current": "300"}, 500),
        (2, {"memory.max": "1000", "memory.current": "300", "memory.stat": "anon 9\ninactive_file 100\n"}, 800),
        (2, {"memory.max": "1000", "memory.current": "1300", "memory.stat": "inactive_file 100\n"}, 0),
        (2, {"memory.max": "max", "memory.high": "max", "memory.current": "300"}, PLENTY),
        (2, {"memory.max": "1000"}, PLENTY),
        (2, {"memory.current": "1000"}, PLENTY),
        (2, {"memory.max": "0", "memory.current": "0"}, 0),
        (2, {"memory.max": "lots", "memory.current": "0"}, PLENTY),
        (
            1,
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "600",
                "memory.stat": "inactive_file 1\nhierarchical_memory_limit 5\ntotal_inactive_file 50\n",
            },
            450,
        ),
        (1, {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "600"}, PLENTY),
        (1, {"memory.max": "1000", "memory.current": "300"}, PLENTY),
    ],
)
def test_what_a_group_may_still_take_is_its_limit_less_its_use_and_more_by_what_can_be_dropped(
    lay: Any, version: int, files: dict[str, str], room: int
) -> None:
    root = lay({f"/sys/{name}": text for name, text in files.items()}).sys
    assert read_group_memory([MemoryGroup(root, version)], PLENTY) == room


def test_the_tightest_group_and_what_the_machine_has_decide_about_memory(lay: Any) -> None:
    root = lay(
        {
            "/sys/memory.max": "5000",
            "/sys/memory.current": "4500",
            "/sys/own/memory.max": "2000",
            "/sys/own/memory.current": "100",
        }
    ).sys
    groups = [MemoryGroup(root / "own", 2), MemoryGroup(root, 2)]
    assert read_group_memory(groups, PLENTY) == 500
    assert read_group_memory(groups, 400) == 400
    assert read_group_memory([], 400) == 400
