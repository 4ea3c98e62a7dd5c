"""What the aggregator knows and must never forget: rounds and updates, in SQLite beside the files they name.

Every write is on the disk when its method returns. A model or update file is always written before the row that names
it, so that a row never names a file that is not there.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Ledger", "OpenRound", "StoredUpdate"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rounds (
    number INTEGER PRIMARY KEY, manifest BLOB NOT NULL, opened_s REAL NOT NULL, record BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS updates (
    uid TEXT PRIMARY KEY, round INTEGER NOT NULL REFERENCES rounds (number), device TEXT NOT NULL,
    UNIQUE (round, device)
) STRICT;
CREATE TABLE IF NOT EXISTS refusals (reason TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT;
"""


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update that was acknowledged."""

    uid: str
    round: int
    device: str


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round that was announced and not closed; `manifest` is the JSON that was published."""

    number: int
    manifest: bytes
    opened_s: float


class Ledger:
    """The database of one federation; a context manager."""

    def __init__(self, path: Path) -> None:
        """Open or make the database; raise `StateError` when it cannot be read."""
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise StateError(f"{path}: the ledger cannot be opened: {error}") from None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the database."""
        self._database.close()

    def claim(self, **identity: str) -> None:
        """Note whose ledger this is, or raise `StateError` when it is somebody else's already."""
        for key, value in identity.items():
            self._database.execute("INSERT OR IGNORE INTO identity VALUES (?, ?)", (key, value))
            (known,) = self._database.execute("SELECT value FROM identity WHERE key = ?", (key,)).fetchone()
            if known != value:
                raise StateError(
                    f"the state folder belongs to {key} {known[:40]}, not to {value[:40]}; "
                    "give this federation a state folder of its own"
                )

    def open_round(self, number: int, manifest: bytes, opened_s: float) -> None:
        """Note that a round is announced."""
        self._database.execute("INSERT INTO rounds VALUES (?, ?, ?, NULL)", (number, manifest, opened_s))

    def close_round(self, number: int, record: bytes) -> None:
        """Note that a round is closed, with its record as JSON."""
        self._database.execute("UPDATE rounds SET record = ? WHERE number = ?", (record, number))

    def rounds_done(self) -> int:
        """Return the number of the last closed round; 0 before the first."""
        (number,) = self._database.execute("SELECT MAX(number) FROM rounds WHERE record IS NOT NULL").fetchone()
        return number or 0

    def records(self) -> list[bytes]:
        """Return the records of the closed rounds, in order."""
        rows = self._database.execute("SELECT record FROM rounds WHERE record IS NOT NULL ORDER BY number")
        return [record for (record,) in rows]

    def opened(self) -> OpenRound | None:
        """Return the round that is open, if one is."""
        row = self._database.execute("SELECT number, manifest, opened_s FROM rounds WHERE record IS NULL").fetchone()
        return None if row is None else OpenRound(*row)

    def store_update(self, update: StoredUpdate) -> None:
        """Note that an update's file is stored; raise `StateError` when the device has one in this round already."""
        try:
            self._database.execute("INSERT INTO updates VALUES (?, ?, ?)", (update.uid, update.round, update.device))
        except sqlite3.IntegrityError:
            raise StateError(f"{update.device} has an update in round {update.round} already") from None

    def has_update(self, uid: str) -> bool:
        """Return whether this very update was stored, in whatever round."""
        return self._database.execute("SELECT 1 FROM updates WHERE uid = ?", (uid,)).fetchone() is not None

    def updates(self, number: int) -> list[StoredUpdate]:
        """Return a round's updates in a fixed order."""
        rows = self._database.execute("SELECT uid, round, device FROM updates WHERE round = ? ORDER BY uid", (number,))
        return [StoredUpdate(*row) for row in rows]

    def count_refusal(self, reason: str) -> None:
        """Count a refused update under its reason."""
        self._database.execute(
            "INSERT INTO refusals VALUES (?, 1) ON CONFLICT (reason) DO UPDATE SET count = count + 1", (reason,)
        )

    def refusals(self) -> dict[str, int]:
        """Return how many updates were refused, by reason."""
        return dict(self._database.execute("SELECT reason, count FROM refusals").fetchall())
