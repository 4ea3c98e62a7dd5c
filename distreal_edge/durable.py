"""Write files so that they are there after a power cut, whole or not at all."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["held_folder", "make_folder", "remove_durably", "write_durably"]

_UNFINISHED = ".unfinished"


def write_durably(path: Path, data: bytes) -> None:
    """Write the whole file under a passing name, sync it, rename it into place, and sync the folder.

    Raises `StateError` when the disk refuses; what was there before is then still there.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise StateError(
            f"{path}: cannot be written: {error.strerror}; check the disk's space and the folder's owner"
        ) from None


def remove_durably(path: Path) -> None:
    """Remove a file if it is there, so that it does not come back after a power cut; raise `StateError` if it stays."""
    try:
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)
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
            _sync_folder(made.parent)
    except (FileExistsError, NotADirectoryError):
        raise StateError(f"{folder}: cannot be made: a file is in its place; give the path of a folder") from None
    except OSError as error:
        raise StateError(f"{folder}: cannot be made: {error.strerror}; check the folder's owner") from None


def _sync_folder(folder: Path) -> None:
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
