"""Judge a state folder: whether we may write there, whether all fits, and how soon a write is safe."""

from __future__ import annotations

import os
import pwd
import secrets
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from distreal_edge.doctor.finding import Finding
from distreal_edge.durable import remove_durably, write_durably
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DiskReading", "judge_disk", "read_disk"]

_WRITES: Final = 8
_BYTES: Final = 256 * 1024
_MOST_ENTRIES: Final = 10_000
_SLOW_MEDIAN_S: Final = 0.5
_SLOW_WORST_S: Final = 3.0
"""An update has `upload_seconds`, five by default, to become safe here and to arrive."""


@dataclass(frozen=True, slots=True)
class DiskReading:
    """What a state folder is like; `tried` is the folder above it where it does not exist yet.

    `user` is who looked, `owner` whose the folder is (empty: not known), `foreign` something in it that is not the
    owner's. `writes_s` are the seconds that writes of 256 KiB took until they were safe, `refused` why they were not.
    """

    folder: Path
    tried: Path
    user: str
    owner: str
    free_bytes: int
    refused: str | None = None
    foreign: Path | None = None
    writes_s: tuple[float, ...] = ()


def read_disk(folder: Path) -> DiskReading:
    """Write a few small files and remove them again. Nothing is left, and the folder is not made."""
    tried, user, owner, free_bytes = folder, _name(os.geteuid()), "", 0
    foreign: Path | None = None
    writes_s: tuple[float, ...] = ()
    refused: str | None = None
    try:
        tried = next(each for each in (folder, *folder.absolute().parents) if _is_there(each))
        owner = _name(tried.stat().st_uid)
        statistics = os.statvfs(tried)
        free_bytes = statistics.f_bavail * statistics.f_frsize
        if tried.is_dir():
            foreign = next((each for each in _entries(folder) if _is_foreign(each, folder)), None)
            writes_s = tuple(_times(tried))
        else:
            refused = "is no folder"
    except StateError as error:
        refused = _reason(error)
    except OSError as error:
        refused = error.strerror or str(error)
    return DiskReading(folder, tried, user, owner, free_bytes, refused, foreign, writes_s)


def judge_disk(reading: DiskReading, *, needed_bytes: int) -> tuple[Finding, ...]:
    """Say whether the folder can be used, whether what is to come fits, and whether the disk is quick enough."""
    if reading.refused is not None:
        return (_refused(reading),)
    where = f"{reading.folder}" if reading.tried == reading.folder else f"{reading.folder}, still to be made,"
    if reading.foreign is not None:
        usable = Finding(
            "state folder",
            f"{reading.foreign} is not {reading.owner}'s, as the folder is",
            f"sudo chown -R {reading.owner} {reading.folder}, and always start the program as {reading.owner}",
        )
    else:
        whose = "" if reading.user == reading.owner else f", and is {reading.owner}'s"
        usable = Finding("state folder", f"{where} can be written by {reading.user}{whose}")
    return (usable, _space(reading, needed_bytes), _speed(reading))


def _refused(reading: DiskReading) -> Finding:
    refused = reading.refused or ""
    if "ead-only" in refused:
        remedy = "a disk that turns read-only is often worn out: see `dmesg`, then copy what is on it and replace it"
    elif reading.user in {"root", reading.owner} or "denied" not in refused:
        remedy = "give state the path of a folder that this user can make and write"
    elif reading.tried == reading.folder:
        remedy = f"look as the user that the program runs as: sudo -u {reading.owner or 'USER'} distreal-edge doctor"
    else:
        remedy = f"make it: sudo install -d -m 700 -o {reading.user} {reading.folder}"
    return Finding("state folder", f"{reading.tried}: {refused}", remedy)


def _space(reading: DiskReading, needed_bytes: int) -> Finding:
    found = f"{reading.free_bytes / 1e9:.1f} GB free; {needed_bytes / 1e9:.2g} GB may be needed"
    if reading.free_bytes >= needed_bytes:
        return Finding("disk space", found)
    return Finding(
        "disk space", found, "free some (sudo apt-get clean; sudo journalctl --vacuum-size=50M), or move state"
    )


def _speed(reading: DiskReading) -> Finding:
    ordered = sorted(reading.writes_s)
    median_s, worst_s = ordered[len(ordered) // 2], ordered[-1]
    found = f"256 KiB are safe after {1e3 * median_s:.0f} ms, at worst {1e3 * worst_s:.0f} ms"
    if median_s <= _SLOW_MEDIAN_S and worst_s <= _SLOW_WORST_S:
        return Finding("disk speed", found)
    return Finding(
        "disk speed",
        found,
        "see who else writes (sudo apt-get install iotop; sudo iotop -o), or put state on another card or a USB disk",
    )


def _times(folder: Path) -> Iterator[float]:
    data = os.urandom(_BYTES)  # some cards compress
    path = folder / f".doctor-{secrets.token_hex(8)}"
    try:
        for _ in range(_WRITES):
            began_s = time.monotonic()
            write_durably(path, data)
            yield time.monotonic() - began_s
    finally:
        if path.exists():
            remove_durably(path)


def _entries(folder: Path) -> Iterator[Path]:
    return islice(folder.rglob("*"), _MOST_ENTRIES) if folder.is_dir() else iter(())


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_foreign(path: Path, folder: Path) -> bool:
    try:
        return path.lstat().st_uid != folder.stat().st_uid
    except FileNotFoundError:  # a running program works here
        return False


def _reason(error: StateError) -> str:
    # "PATH: cannot be written: REASON; ADVICE", of which the path is only ours.
    return str(error).partition(": cannot be written: ")[2].partition(";")[0] or str(error)


def _name(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)
