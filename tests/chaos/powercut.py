"""A disk that loses its power: what may be left of recorded writes at any instant of a run.

What was synced is there. Of what was not, any part may be: each write whole, torn at sectors, or not at all, a file's
new length without what was in it; each new, renamed or removed name, in whatever order they were made. That is more
than most file systems do, and what POSIX allows. A rename is never half done.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

SECTOR: Final = 512
SOURCE: Final = Path(__file__).with_name("recorder.c")


def build_recorder(folder: Path) -> Path:
    """Compile the library that is preloaded into whatever is to be recorded."""
    library = folder / "recorder.so"
    subprocess.run(
        [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True
    )
    return library


def recording(library: Path, root: Path, log: Path) -> dict[str, str]:
    """Return the environment of a program whose writes below `root` are to be recorded in `log`."""
    return {**os.environ, "LD_PRELOAD": str(library), "RECORDER_ROOT": str(root), "RECORDER_LOG": str(log)}


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that a program did: `kind` as the recorder has it, `data` what was written, sent, or the new name."""

    kind: str
    inode: int
    offset: int
    path: str
    data: bytes


def read_log(log: Path) -> list[Operation]:
    """Return what was recorded, in order. The last record of a killed program may be cut off."""
    found: list[Operation] = []
    with log.open("rb") as file:
        while line := file.readline():
            kind, inode, offset, length, path = line.decode().rstrip("\n").split(" ", 4)
            data = file.read(int(length))
            if len(data) < int(length):
                break
            found.append(Operation(kind, int(inode), int(offset), path, data))
    return found


@dataclass(slots=True)
class _File:
    synced: bytearray = field(default_factory=bytearray)
    now: bytearray = field(default_factory=bytearray)
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)

    def change(self, kind: str, offset: int, data: bytes) -> None:
        _apply(self.now, kind, offset, data)
        self.pending.append((kind, offset, data))

    def sync(self) -> None:
        self.synced, self.pending = bytearray(self.now), []

    def left(self, rng: random.Random) -> bytes:
        """Return what may be left of it."""
        found = bytearray(self.synced)
        for kind, offset, data in self.pending:
            chance = rng.random()
            if chance < 0.35:
                _apply(found, kind, offset, data)
            elif kind == "write" and chance < 0.6:
                if rng.random() < 0.5 and len(found) < offset + len(data):  # the length came first
                    found.extend(bytes(offset + len(data) - len(found)))
                for begin in range(0, len(data), SECTOR):
                    if rng.random() < 0.5:
                        _apply(found, kind, offset + begin, data[begin : begin + SECTOR])
        return bytes(found)


def _apply(content: bytearray, kind: str, offset: int, data: bytes) -> None:
    if kind == "truncate":
        del content[offset:]
        content.extend(bytes(max(0, offset - len(content))))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


# What a name stands for: a file, or a folder, which is its path.
_Entry = _File | str


class Disk:
    """The folder below `root` as the program sees it, and as it may be found after the power was cut."""

    def __init__(self, root: Path) -> None:
        """Begin with an empty folder that is there for good."""
        self._root = str(root)
        self._synced: dict[str, dict[str, _Entry]] = {self._root: {}}
        self._pending: dict[str, list[list[tuple[str, _Entry | None]]]] = {self._root: []}
        self._inodes: dict[int, _File] = {}

    def do(self, operation: Operation) -> None:
        """Let the program do something."""
        kind, path = operation.kind, operation.path.rstrip("/")
        match kind:
            case "create":
                self._inodes[operation.inode] = _File()
                self._name(path, self._inodes[operation.inode])
            case "write" | "truncate":
                self._inodes[operation.inode].change(kind, operation.offset, operation.data)
            case "sync":
                self._inodes[operation.inode].sync()
            case "mkdir":
                if path != self._root:
                    self._name(path, path)
                    self._synced[path], self._pending[path] = {}, []
            case "syncdir":
                if path in self._synced:
                    for change in self._pending[path]:
                        _change(self._synced[path], change)
                    self._pending[path] = []
            case "unlink":
                self._name(path, None)
            case "rename":
                self._rename(path, operation.data.decode())

    def left(self, rng: random.Random, into: Path) -> None:
        """Write what may be left below `into`, which is empty."""
        likely = rng.choice([0.0, 0.5, 0.5, 0.9, 1.0])
        self._leave(self._root, rng, likely, into)

    def _leave(self, folder: str, rng: random.Random, likely: float, into: Path) -> None:
        entries = dict(self._synced[folder])
        for change in self._pending[folder]:
            if rng.random() < likely:
                _change(entries, change)
        for name, entry in entries.items():
            if isinstance(entry, str):
                (into / name).mkdir()
                self._leave(entry, rng, likely, into / name)
            else:
                (into / name).write_bytes(entry.left(rng))

    def _name(self, path: str, entry: _Entry | None) -> None:
        folder, _, name = path.rpartition("/")
        self._pending[folder].append([(name, entry)])

    def _rename(self, old: str, new: str) -> None:
        (old_folder, _, old_name), (new_folder, _, new_name) = old.rpartition("/"), new.rpartition("/")
        entry = self._seen(old_folder)[old_name]
        if old_folder == new_folder:
            self._pending[old_folder].append([(old_name, None), (new_name, entry)])
        else:  # between folders it may be seen in neither of them, or in both
            self._pending[new_folder].append([(new_name, entry)])
            self._pending[old_folder].append([(old_name, None)])

    def _seen(self, folder: str) -> dict[str, _Entry]:
        entries = dict(self._synced[folder])
        for change in self._pending[folder]:
            _change(entries, change)
        return entries


def _change(entries: dict[str, _Entry], change: Iterable[tuple[str, _Entry | None]]) -> None:
    for name, entry in change:
        if entry is None:
            entries.pop(name, None)
        else:
            entries[name] = entry


def without(operations: Sequence[Operation], kind: str, part_of_path: str) -> list[Operation]:
    """Return the same run by a program that had forgotten to sync these files or folders."""
    return [each for each in operations if not (each.kind == kind and part_of_path in each.path)]
