"""The spool: finished updates on disk, until the aggregator says that it has them."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from distreal_edge.durable import remove_durably, write_durably
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Spool"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"^r(?P<round>[0-9]{1,9})-(?P<uid>[A-Za-z0-9_-]{1,64})\.update$")
_MOST_UPDATES = 4


class Spool:
    """A folder of updates by uid, oldest first; the oldest give way when there are more than a few.

    An aggregator that was away for long is interested in the newest round only, so that little is kept.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder, making it if need be; raise `StateError` when that cannot be done."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"{folder}: cannot be made: {error.strerror}; check the folder's owner") from None
        for unfinished in folder.glob("*.unfinished"):
            unfinished.unlink()

    def add(self, uid: str, round_number: int, data: bytes) -> Path:
        """Store an update durably and return its file."""
        waiting = self.waiting()
        for old in waiting[: max(0, len(waiting) + 1 - _MOST_UPDATES)]:
            _log.warning("update %s gives way: the spool holds at most %d", old, _MOST_UPDATES)
            self.remove(old)
        path = self._folder / f"r{round_number:09d}-{uid}.update"
        write_durably(path, data)
        return path

    def waiting(self) -> tuple[str, ...]:
        """Return the uids of the stored updates, oldest round first."""
        return tuple(uid for _, uid in sorted(self._files()))

    def path(self, uid: str) -> Path | None:
        """Return the file of an update, or None when it is not here."""
        return next((path for path in self._files().values() if path.name.endswith(f"-{uid}.update")), None)

    def remove(self, uid: str) -> None:
        """Forget an update."""
        path = self.path(uid)
        if path is not None:
            remove_durably(path)

    def newest_round(self) -> int:
        """Return the newest round that an update is stored for; 0 when there is none."""
        return max((number for number, _ in self._files()), default=0)

    def _files(self) -> dict[tuple[int, str], Path]:
        found: dict[tuple[int, str], Path] = {}
        for path in self._folder.iterdir():
            match = _NAME.match(path.name)
            if match:
                found[int(match["round"]), match["uid"]] = path
        return found
