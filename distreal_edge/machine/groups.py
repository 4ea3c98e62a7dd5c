"""Find the control groups that this process is in, of version 1, 2 or both, and those above them.

/proc/self/cgroup says where the process is in each hierarchy, /proc/self/mountinfo where hierarchies are mounted, and
which part of one: inside a container the mounted part often begins at the container's own group, and groups above it
cannot be seen. See cgroups(7), cgroup_namespaces(7) and proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distreal_edge.machine.files import is_folder, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distreal_edge.machine.files import Roots

__all__ = ["CpuGroup", "Groups", "MemoryGroup", "find_groups", "read_membership"]

_OCTAL = re.compile(r"\\([0-7]{3})")
_LONGEST_PATH = 4096
"""Linux has none beyond it."""
_UNIFIED = ""
"""How version 2's hierarchy is called here, and in /proc/self/cgroup: it has no list of controllers."""


@dataclass(frozen=True, slots=True)
class CpuGroup:
    """A group that may have a quota. `usage` is the folder that counts its CPU time, None when nobody does."""

    folder: Path
    version: int
    usage: Path | None


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A group that may have a limit of memory."""

    folder: Path
    version: int


@dataclass(frozen=True, slots=True)
class Groups:
    """Every group that holds this process, the innermost first; `cpusets` are the folders that may name CPUs."""

    cpu: tuple[CpuGroup, ...] = ()
    cpusets: tuple[Path, ...] = ()
    memory: tuple[MemoryGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class _Mount:
    folder: Path
    root: str


def read_membership(roots: Roots) -> str:
    """Return what Linux says about this process's groups: when it changes, groups must be found anew."""
    return read_text(f"{roots.proc}/self/cgroup") or ""


def find_groups(roots: Roots, membership: str) -> Groups:
    """Return the groups that `membership` names and that can be seen; none where there are no control groups."""
    paths = dict(_paths(membership))
    mounts: dict[str, list[_Mount]] = {}
    for controller, mount in _mounts(roots):
        mounts.setdefault(controller, []).append(mount)
    levels = {name: _levels(mounts[name], path) for name, path in paths.items() if name in mounts}
    unified = [folder for _, folder in levels.get(_UNIFIED, [])]
    usage: dict[str, Path] = {}
    # Version 1 may count CPU time in another hierarchy than the one with the quota. Groups of one name are then taken
    # for the same group, as whoever makes them by hand or by a container engine does.
    if paths.get("cpu") == paths.get("cpuacct"):
        usage = dict(levels.get("cpuacct", []))
    return Groups(
        cpu=(
            *(CpuGroup(folder, 1, usage.get(below)) for below, folder in levels.get("cpu", [])),
            *(CpuGroup(folder, 2, folder) for folder in unified),
        ),
        cpusets=(*(folder for _, folder in levels.get("cpuset", [])), *unified),
        memory=(
            *(MemoryGroup(folder, 1) for _, folder in levels.get("memory", [])),
            *(MemoryGroup(folder, 2) for folder in unified),
        ),
    )


def _paths(membership: str) -> Iterator[tuple[str, str]]:
    """Yield each controller with the path of this process's group, as seen from the group namespace's root."""
    for line in membership.splitlines():
        _, separator, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if separator and colon and path.startswith("/") and len(path) <= _LONGEST_PATH:
            for controller in controllers.split(","):
                yield controller, path


def _mounts(roots: Roots) -> Iterator[tuple[str, _Mount]]:
    for line in (read_text(roots.proc / "self" / "mountinfo") or "").splitlines():
        where, separator, what = line.partition(" - ")
        left, right = where.split(" "), what.split(" ")
        if not separator or len(left) < 6 or len(right) < 3:
            continue
        mount = _Mount(roots.mounted(_unescaped(left[4])), _unescaped(left[3]))
        if right[0] == "cgroup2":
            yield _UNIFIED, mount
        elif right[0] == "cgroup":
            for controller in right[2].split(","):
                yield controller, mount


def _levels(mounts: list[_Mount], path: str) -> list[tuple[str, Path]]:
    """Return this group and those above it, as far up as one of the mounts shows, with their paths below it."""
    best: list[tuple[str, Path]] = []
    # Of several mounts the one with the most groups on the way is the widest view, and a mount that really holds our
    # group comes before one that only may.
    for mount in sorted(mounts, key=lambda mount: _below(path, mount.root) is None):
        parts = _below(path, mount.root) or []
        found = [
            ("/".join(parts[:depth]), mount.folder.joinpath(*parts[:depth])) for depth in range(len(parts), -1, -1)
        ]
        found = [(below, folder) for below, folder in found if is_folder(folder)]
        if len(found) > len(best):
            best = found
    return best


def _below(path: str, root: str) -> list[str] | None:
    """Return the parts of a path below a mount's root; None when it does not lie there.

    A path or root with `..` is outside of our group namespace. What is mounted is then the best guess: container
    engines mount a container's own group, or one above it.
    """
    parts = [part for part in path.split("/") if part]
    above = [part for part in root.split("/") if part]
    if ".." in parts or ".." in above or parts[: len(above)] != above:
        return None
    return parts[len(above) :]


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
