"""Where a process finds its groups. Lines are in the form of real machines: Pi OS, Debian, Docker, Kubernetes, LXC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distreal_edge.machine import Groups, find_groups, read_membership

if TYPE_CHECKING:
    from pathlib import Path

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def found(lay: Any, mountinfo: str, membership: str, *folders: str) -> tuple[Groups, Path]:
    """Return the groups of a machine with these folders, and the folder that stands for its root."""
    roots = lay(
        {"/proc/self/mountinfo": mountinfo, "/proc/self/cgroup": membership}
        | {f"{folder}/cgroup.procs": "1\n" for folder in folders}
    )
    return find_groups(roots, read_membership(roots)), roots.sys.parent


def names(groups: Groups, root: Path) -> list[tuple[str, int, str | None]]:
    return [
        (
            f"/{group.folder.relative_to(root)}",
            group.version,
            None if group.usage is None else f"/{group.usage.relative_to(root)}",
        )
        for group in groups.cpu
    ]


def test_version_2_is_followed_from_the_service_up_to_the_root(lay: Any) -> None:
    service = "/sys/fs/cgroup/system.slice/distreal.service"
    groups, root = found(lay, V2, "0::/system.slice/distreal.service\n", service)
    folders = [service, "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"]
    assert names(groups, root) == [(folder, 2, folder) for folder in folders]
    assert [group.folder for group in groups.memory] == [root / folder[1:] for folder in folders]
    assert list(groups.cpusets) == [root / folder[1:] for folder in folders]


def test_version_1_has_a_place_in_each_hierarchy(lay: Any) -> None:
    mountinfo = (
        "31 23 0:28 / /sys/fs/cgroup ro,relatime - tmpfs tmpfs ro,mode=755\n"
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "34 31 0:31 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"
        "35 31 0:32 / /sys/fs/cgroup/cpuset rw shared:11 - cgroup cgroup rw,cpuset\n"
        "36 31 0:33 / /sys/fs/cgroup/systemd rw shared:12 - cgroup cgroup rw,xattr,name=systemd\n"
    )
    membership = "5:cpuset:/\n4:memory:/user.slice\n3:cpuacct,cpu:/work/mine\n1:name=systemd:/user.slice\n"
    groups, root = found(
        lay,
        mountinfo,
        membership,
        "/sys/fs/cgroup/cpu,cpuacct/work/mine",
        "/sys/fs/cgroup/memory/user.slice",
        "/sys/fs/cgroup/cpuset",
    )
    cpu = "/sys/fs/cgroup/cpu,cpuacct"
    assert names(groups, root) == [(folder, 1, folder) for folder in (f"{cpu}/work/mine", f"{cpu}/work", cpu)]
    assert [group.folder for group in groups.memory] == [
        root / "sys/fs/cgroup/memory/user.slice",
        root / "sys/fs/cgroup/memory",
    ]
    assert list(groups.cpusets) == [root / "sys/fs/cgroup/cpuset"]


SPLIT = (
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n"
)


def test_time_that_is_counted_in_a_hierarchy_of_its_own_is_that_of_the_group_of_the_same_name(lay: Any) -> None:
    groups, root = found(
        lay, SPLIT, "2:cpuacct:/mine\n1:cpu:/mine\n", "/sys/fs/cgroup/cpu/mine", "/sys/fs/cgroup/cpuacct/mine"
    )
    assert names(groups, root) == [
        ("/sys/fs/cgroup/cpu/mine", 1, "/sys/fs/cgroup/cpuacct/mine"),
        ("/sys/fs/cgroup/cpu", 1, "/sys/fs/cgroup/cpuacct"),
    ]


def test_time_that_is_counted_for_another_group_says_nothing_about_this_one(lay: Any) -> None:
    groups, root = found(lay, SPLIT, "2:cpuacct:/\n1:cpu:/mine\n", "/sys/fs/cgroup/cpu/mine", "/sys/fs/cgroup/cpuacct")
    assert names(groups, root) == [("/sys/fs/cgroup/cpu/mine", 1, None), ("/sys/fs/cgroup/cpu", 1, None)]


def test_hybrid_machines_have_both(lay: Any) -> None:
    mountinfo = (
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    groups, root = found(
        lay,
        mountinfo,
        "1:cpu,cpuacct:/a\n0::/b\n",
        "/sys/fs/cgroup/cpu,cpuacct/a",
        "/sys/fs/cgroup/unified/b",
    )
    assert [(name, version) for name, version, _ in names(groups, root)] == [
        ("/sys/fs/cgroup/cpu,cpuacct/a", 1),
        ("/sys/fs/cgroup/cpu,cpuacct", 1),
        ("/sys/fs/cgroup/unified/b", 2),
        ("/sys/fs/cgroup/unified", 2),
    ]


def test_a_container_whose_own_group_is_mounted_strips_the_mounts_root(lay: Any) -> None:
    mountinfo = "900 890 0:30 /docker/4f2a /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
    groups, root = found(lay, mountinfo, "4:cpu,cpuacct:/docker/4f2a\n", "/sys/fs/cgroup/cpu")
    assert names(groups, root) == [("/sys/fs/cgroup/cpu", 1, "/sys/fs/cgroup/cpu")]


def test_a_group_inside_a_container_is_found_below_the_mount(lay: Any) -> None:
    mountinfo = "900 890 0:30 /docker/4f2a /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
    groups, root = found(lay, mountinfo, "0::/docker/4f2a/init.scope\n", "/sys/fs/cgroup/init.scope")
    assert [name for name, _, _ in names(groups, root)] == ["/sys/fs/cgroup/init.scope", "/sys/fs/cgroup"]


def test_a_path_that_is_the_hosts_and_not_below_the_mount_leaves_what_is_mounted(lay: Any) -> None:
    mountinfo = "900 890 0:30 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
    groups, root = found(lay, mountinfo, "0::/kubepods/burstable/pod1/4f2a\n", "/sys/fs/cgroup")
    assert [name for name, _, _ in names(groups, root)] == ["/sys/fs/cgroup"]


def test_a_path_of_which_only_the_upper_part_can_be_seen_is_followed_from_there(lay: Any) -> None:
    groups, root = found(lay, V2, "0::/a/b/c\n", "/sys/fs/cgroup/a")
    assert [name for name, _, _ in names(groups, root)] == ["/sys/fs/cgroup/a", "/sys/fs/cgroup"]


def test_what_is_outside_of_our_namespace_is_what_is_mounted(lay: Any) -> None:
    above = "900 890 0:30 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
    groups, root = found(lay, above, "0::/\n", "/sys/fs/cgroup")
    assert [name for name, _, _ in names(groups, root)] == ["/sys/fs/cgroup"]
    groups, root = found(lay, V2, "0::/../neighbour\n", "/sys/fs/cgroup", "/sys/fs/neighbour")
    assert [name for name, _, _ in names(groups, root)] == ["/sys/fs/cgroup"]


def test_of_two_mounts_the_one_that_shows_more_groups_counts(lay: Any) -> None:
    mountinfo = V2 + "99 23 0:26 / /mnt/the\\040host/cgroup rw - cgroup2 cgroup2 rw\n"
    groups, root = found(lay, mountinfo, "0::/a/b\n", "/sys/fs/cgroup", "/mnt/the host/cgroup/a/b")
    assert [name for name, _, _ in names(groups, root)] == [
        "/mnt/the host/cgroup/a/b",
        "/mnt/the host/cgroup/a",
        "/mnt/the host/cgroup",
    ]


def test_a_mount_of_a_neighbours_group_does_not_hide_our_own(lay: Any) -> None:
    mountinfo = "98 23 0:26 /other /mnt/other rw - cgroup2 cgroup2 rw\n" + V2
    groups, root = found(lay, mountinfo, "0::/\n", "/sys/fs/cgroup", "/mnt/other")
    assert [name for name, _, _ in names(groups, root)] == ["/sys/fs/cgroup"]


def test_a_machine_without_groups_has_none(lay: Any) -> None:
    for mountinfo, membership in (
        ("", ""),
        (V2, ""),
        ("", "0::/a\n"),
        ("22 27 0:21 / /proc rw - proc proc rw\n", "0::/a\n"),
        ("30 23 0:26 / /sys/fs/cgroup\n - \n30 - cgroup2\n", "0::\n0\n:::\n0::a\n"),
        (V2, "0::" + 200_000 * "/a"),  # longer than a path can be: to follow it would take hours
    ):
        assert found(lay, mountinfo, membership, "/sys/fs/cgroup")[0] == Groups()
