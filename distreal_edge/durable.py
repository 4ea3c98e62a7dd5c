"""Write files so that they are there after a power cut, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import time
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO, Final

from distreal_edge.errors import FullDiskError, StateError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "append_durably",
    "held_folder",
    "make_folder",
    "quarantine",
    "remove_durably",
    "rename_durably",
    "sync_folder",
    "write_durably",
]

_log = logging.getLogger(__name__)
_UNFINISHED = ".unfinished"
_QUARANTINE = "quarantine"
_QUARANTINED: Final = re.compile(r".+\.[0-9]{8}T[0-9]{6}Z(-[0-9]+)?")
_MOST_FILES: Final = 100
_MOST_BYTES: Final = 256 * 2**20
"""A card that wears out damages file after file: what is kept of them must not fill it."""


def write_durably(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write the whole file under a passing name, sync it, rename it into place, and sync the folder.

    `private`: nobody but its owner can read it, from its first byte on. Raises `StateError` when the disk refuses; what
    was there before is then still there.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with _open_private(unfinished) if private else unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise _refused(path, error) from None


def _open_private(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)  # one that was left behind may have another mode, or be open already
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def append_durably(path: Path, data: bytes) -> None:
    """Append to a file, and sync it; a power cut may leave a part of `data`. Raises `StateError`."""
    try:
        new = not path.exists()
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, error) from None


def rename_durably(path: Path, name: Path) -> None:
    """Give a synced file another name in its folder, in place of what had it; raise `StateError`."""
    try:
        path.replace(name)
        sync_folder(name.parent)
    except OSError as error:
        raise _refused(name, error) from None


def _refused(path: Path, error: OSError) -> StateError:
    kind = FullDiskError if error.errno in {errno.ENOSPC, errno.EDQUOT} else StateError
    return kind(f"{path}: cannot be written: {error.strerror}; check the disk's space and the folder's owner")


def quarantine(path: Path, state: Path) -> Path:
    """Move a damaged file out of the way, into `quarantine/` of the state folder; return where it is now.

    Its new name ends in the time, UTC. Its owner may want to look, so that this one stays in any case, and the newest
    of those before it: 100 files and 256 MiB in all. Older ones are removed, and the log says so. Raises `StateError`.
    """
    folder = state / _QUARANTINE
    make_folder(folder)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    moved, others = folder / f"{path.name}.{stamp}", 0
    while moved.exists():
        others += 1
        moved = folder / f"{path.name}.{stamp}-{others}"
    try:
        path.rename(moved)
        sync_folder(folder)
        sync_folder(path.parent)
    except OSError as error:
        raise StateError(
            f"{path}: is damaged, and cannot be moved to {folder}: {error.strerror}; check the disk and its owner"
        ) from None
    _thin_out(folder, moved)
    return moved


def _thin_out(folder: Path, newest: Path) -> None:
    """Remove the oldest damaged files beyond what is kept. Not durable: what a power cut brings back goes later."""
    with suppress(OSError):
        known = [(path.lstat(), path) for path in folder.iterdir() if _QUARANTINED.fullmatch(path.name)]
        # Since when a file has its name: the time at which it was written is an older one.
        known.sort(key=lambda each: (each[1] == newest, each[0].st_ctime_ns), reverse=True)
        sizes = accumulate(status.st_size for status, _ in known)
        full = (number for number, size in enumerate(sizes) if number == _MOST_FILES or size > _MOST_BYTES)
        old = [path for _, path in known[max(1, next(full, len(known))) :]]
        for path in reversed(old):
            path.unlink()
        if old:
            _log.warning("%s: has no room for more; removed %s, the oldest", folder, count_of(len(old), "file"))


def remove_durably(path: Path) -> None:
    """Remove a file if it is there, so that it does not come back after a power cut; raise `StateError` if it stays."""
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise StateError(
            f"{path}: cannot be removed: {error.strerror}; check the disk and the folder's owner"
        ) from None


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, if need be, so that it is there after a power cut; raise `StateError`."""
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in reversed(missing):
            sync_folder(made.parent)
    except (FileExistsError, NotADirectoryError):
        raise StateError(f"{folder}: cannot be made: a file is in its place; give the path of a folder") from None
    except OSError as error:
        raise StateError(f"{folder}: cannot be made: {error.strerror}; check the folder's owner") from None


def sync_folder(folder: Path) -> None:
    """Sync which files a folder holds, and their names; raise `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Make a state folder if need be and hold it while inside; raise `StateError` when another process holds it."""
    make_folder(folder)
    try:
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise StateError(f"{folder}: cannot be used: {error.strerror}; check the folder's owner") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateError(f"{folder}: in use by another distreal-edge; stop it or give another folder") from None
        yield
