"""What the aggregator knows and must never forget: rounds and updates, in SQLite beside the files they name.

Every write is on the disk when its method returns. A model or update file is always written before the row that names
it, so that a row never names a file that is not there.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Ledger", "OpenRound", "StoredUpdate"]

_VERSION: Final = 1
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE identity (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE rounds (
    number INTEGER PRIMARY KEY, manifest BLOB NOT NULL, opened_s REAL NOT NULL, record BLOB
) STRICT;
CREATE TABLE selected (
    round INTEGER NOT NULL REFERENCES rounds (number), device TEXT NOT NULL, images INTEGER NOT NULL,
    PRIMARY KEY (round, device)
) STRICT;
CREATE TABLE updates (
    uid TEXT NOT NULL, device TEXT NOT NULL, round INTEGER NOT NULL, PRIMARY KEY (uid, device),
    UNIQUE (round, device), FOREIGN KEY (round, device) REFERENCES selected (round, device)
) STRICT;
CREATE TABLE refusals (reason TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT;
PRAGMA user_version = {_VERSION};
COMMIT;
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
    """The database of one federation; a context manager, for the thread that made it.

    Every method raises `StateError` when the database is damaged, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the database."""
        self._path = path
        with self._told():
            self._database = sqlite3.connect(path, isolation_level=None)
        try:
            with self._told():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the database."""
        self._database.close()

    def claim(self, **identity: str) -> None:
        """Note whose ledger this is, or raise `StateError` when it is somebody else's already."""
        for key, value in identity.items():
            self._run("INSERT OR IGNORE INTO identity VALUES (?, ?)", key, value)
            ((known,),) = self._run("SELECT value FROM identity WHERE key = ?", key)
            if known != value:
                raise StateError(
                    f"{self._path.parent}: the state folder belongs to {key} {known[:40]}, not to {value[:40]}; "
                    "give this federation a state folder of its own"
                )

    def open_round(self, number: int, manifest: bytes, opened_s: float, images: Mapping[str, int]) -> None:
        """Note that a round is announced, and how many images each selected device said it holds."""
        with self._told(), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("INSERT INTO rounds VALUES (?, ?, ?, NULL)", (number, manifest, opened_s))
            rows = [(number, device, count) for device, count in images.items()]
            self._database.executemany("INSERT INTO selected VALUES (?, ?, ?)", rows)

    def close_round(self, number: int, record: bytes) -> None:
        """Note that a round is closed, with its record as JSON."""
        self._run("UPDATE rounds SET record = ? WHERE number = ?", record, number)

    def rounds_done(self) -> int:
        """Return the number of the last closed round; 0 before the first."""
        ((number,),) = self._run("SELECT MAX(number) FROM rounds WHERE record IS NOT NULL")
        return number or 0

    def records(self) -> list[bytes]:
        """Return the records of the closed rounds, in order."""
        return [record for (record,) in self._run("SELECT record FROM rounds WHERE record IS NOT NULL ORDER BY number")]

    def opened(self) -> OpenRound | None:
        """Return the round that is open, if one is."""
        rows = self._run("SELECT number, manifest, opened_s FROM rounds WHERE record IS NULL")
        return OpenRound(*rows[0]) if rows else None

    def announced_images(self, number: int) -> dict[str, int]:
        """Return how many images each device selected for a round said it holds, when it was selected."""
        return dict(self._run("SELECT device, images FROM selected WHERE round = ?", number))

    def store_update(self, update: StoredUpdate) -> None:
        """Note that an update's file is stored; raise `StateError` when the device has one in this round already."""
        try:
            self._run("INSERT INTO updates VALUES (?, ?, ?)", update.uid, update.device, update.round)
        except StateError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                message = f"{update.device} is not selected for round {update.round}, or has answered it already"
                raise StateError(f"{self._path}: {message}") from None
            raise

    def has_update(self, uid: str, device: str) -> bool:
        """Return whether this very update was stored, in whatever round."""
        return bool(self._run("SELECT 1 FROM updates WHERE uid = ? AND device = ?", uid, device))

    def updates(self, number: int) -> list[StoredUpdate]:
        """Return a round's updates in a fixed order."""
        rows = self._run("SELECT uid, round, device FROM updates WHERE round = ? ORDER BY device", number)
        return [StoredUpdate(*row) for row in rows]

    def count_refusal(self, reason: str) -> None:
        """Count a refused update under its reason."""
        self._run("INSERT INTO refusals VALUES (?, 1) ON CONFLICT (reason) DO UPDATE SET count = count + 1", reason)

    def refusals(self) -> dict[str, int]:
        """Return how many updates were refused, by reason."""
        return dict(self._run("SELECT reason, count FROM refusals"))

    def _prepare(self) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA foreign_keys = ON")
        ((version,),) = self._run("PRAGMA user_version")
        if version == 0:
            self._database.executescript(_SCHEMA)
        elif version != _VERSION:
            raise StateError(
                f"{self._path}: ledger version {version} is not known, this program knows {_VERSION}; "
                "use the version of distreal-edge that wrote it, or another state folder"
            )
        ((verdict,), *_) = self._run("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise self._failure(verdict)

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._told():
            return self._database.execute(statement, values).fetchall()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, what: object) -> StateError:
        return StateError(
            f"{self._path}: the ledger cannot be used: {what}; check the disk's space and the folder's owner; if it is "
            "damaged, restore the state folder from a backup or give the federation a new one"
        )
