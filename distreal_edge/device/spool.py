"""The spool: finished updates on disk, until the aggregator says that it has them."""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING

from distreal_edge.durable import make_folder, quarantine, remove_durably, write_durably
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Spool"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"r(?P<task>[0-9]{10}-[0-9a-f]{16})-(?P<uid>[A-Za-z0-9_-]{1,64})\.(?P<digest>[0-9a-f]{16})\.update")
_DIGITS = 16


class Spool:
    """A folder of updates, one file each: `r<task>-<uid>.<digest>.update`, with 16 digits of the file's SHA-256.

    A task is a round of one model, see `rounds.task_of`: what is stored for it need not be trained again. How many are
    kept, and which give way, is decided by `DeviceRounds`. Files of other names are left alone.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder, making it if need be; raise `StateError` when that cannot be done.

        What has changed since it was written is moved to `quarantine/` beside the folder, and the log says so.
        """
        self._folder = folder
        make_folder(folder)
        try:
            for unfinished in folder.glob("*.unfinished"):
                unfinished.unlink()
        except OSError as error:
            raise StateError(f"{folder}: cannot be cleared: {error.strerror}; check the folder's owner") from None
        for path in self._files().values():
            if not _sound(path):
                moved = quarantine(path, folder.parent)
                _log.error(
                    "%s: has changed since it was written; moved to %s; its round is trained again if there is time",
                    path,
                    moved.relative_to(folder.parent),
                )

    def add(self, uid: str, task: str, data: bytes) -> Path:
        """Store an update durably and return its file; raise `StateError` when the disk refuses."""
        path = self._folder / f"r{task}-{uid}.{hashlib.sha256(data).hexdigest()[:_DIGITS]}.update"
        assert _NAME.fullmatch(path.name)
        write_durably(path, data)
        return path

    def waiting(self) -> tuple[str, ...]:
        """Return the uids of the stored updates, newest round first."""
        return tuple(uid for _, uid in sorted(self._files(), reverse=True))

    def tasks(self) -> frozenset[str]:
        """Return the tasks that updates are stored for."""
        return frozenset(task for task, _ in self._files())

    def path(self, uid: str) -> Path | None:
        """Return the file of an update, or None when it is not here."""
        return next((path for (_, stored), path in self._files().items() if stored == uid), None)

    def remove(self, uid: str) -> None:
        """Forget an update."""
        path = self.path(uid)
        if path is not None:
            remove_durably(path)

    def _files(self) -> dict[tuple[str, str], Path]:
        found: dict[tuple[str, str], Path] = {}
        try:
            for path in self._folder.iterdir():
                match = _NAME.fullmatch(path.name)
                if match:
                    found[match["task"], match["uid"]] = path
        except OSError as error:
            raise StateError(f"{self._folder}: cannot be read: {error.strerror}; check the folder's owner") from None
        return found


def _sound(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS] == path.name.split(".")[1]
    except OSError:
        return False
