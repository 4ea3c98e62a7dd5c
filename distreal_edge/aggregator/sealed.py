"""The ledger's tables, in SQLite, and the seals that tell whether what is read is what was written.

SQLite checks the structure of a database and not what is in it: a flipped bit in a number goes unseen. Every row
therefore ends with a seal, the beginning of a SHA-256 over its table's name and its values. The exclusive or of all
seals is written with every transaction: of one that was half undone, as from a damaged journal, every row may be sound.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from distreal_edge.errors import FullDiskError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DamagedLedgerError", "Sealed"]

VERSION: Final = 1
_SEAL_BYTES: Final = 8
_CACHE_KIB: Final = 256
_PATIENCE_S: Final = 30.0
"""For so long somebody who looks into the ledger may keep it from being written."""
_TABLES: Final = {
    "identity": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    "rounds": "number INTEGER PRIMARY KEY, manifest BLOB NOT NULL, opened_s REAL NOT NULL, record BLOB",
    "selected": "round INTEGER NOT NULL REFERENCES rounds (number), device TEXT NOT NULL, images INTEGER NOT NULL",
    "updates": "uid TEXT NOT NULL, device TEXT NOT NULL, round INTEGER NOT NULL, digest TEXT NOT NULL",
    "files": "name TEXT PRIMARY KEY, round INTEGER NOT NULL, digest TEXT NOT NULL",
    "refusals": "reason TEXT PRIMARY KEY, count INTEGER NOT NULL",
    "staleness": "rounds INTEGER PRIMARY KEY, count INTEGER NOT NULL",
    "decisions": (
        "number INTEGER PRIMARY KEY, time_s REAL NOT NULL, round INTEGER NOT NULL, device TEXT, what TEXT NOT NULL, "
        "why TEXT NOT NULL"
    ),
    "metrics": "round INTEGER NOT NULL, name TEXT NOT NULL, value REAL NOT NULL",
}
_KEYS: Final = {
    "selected": ", PRIMARY KEY (round, device)",
    "updates": (
        ", PRIMARY KEY (uid, device), UNIQUE (round, device), "
        "FOREIGN KEY (round, device) REFERENCES selected (round, device)"
    ),
    "metrics": ", PRIMARY KEY (round, name)",
}
_STATEMENTS: Final = {
    name: f"CREATE TABLE {name} ({columns}, seal BLOB NOT NULL{_KEYS.get(name, '')}) STRICT"
    for name, columns in _TABLES.items()
}
_TOTAL: Final = "CREATE TABLE total (seals BLOB NOT NULL) STRICT"
_INDEX: Final = "CREATE INDEX decisions_of_a_round ON decisions (round)"
# What SQLite says when not the file is at fault, but the disk, its owner or another program.
_OTHERS_FAULT: Final = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_DELETE,
}


class DamagedLedgerError(StateError):
    """The ledger's file is not what was written."""


def _seal(table: str, values: tuple[object, ...]) -> bytes:
    return hashlib.sha256(repr((table, values)).encode()).digest()[:_SEAL_BYTES]


class Sealed:
    """The database, for the thread that made it; every write is on the disk when its method or transaction is over.

    A rollback journal, and no write-ahead log: of a log, SQLite would drop all that follows a damaged place without a
    word, and with it updates that were acknowledged. Raises `StateError`, and `DamagedLedgerError` when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the database, and read all of it."""
        self.path = path
        self._seals = 0
        with self._told():
            self._database = sqlite3.connect(path, isolation_level=None, timeout=_PATIENCE_S)
        try:
            with self._told():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that is written inside, or none of it; inside another one, with that."""
        if self._database.in_transaction:
            yield
            return
        before = self._seals
        try:
            with self._told(), self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield
                self._database.execute("UPDATE total SET seals = ?", (self._seals.to_bytes(_SEAL_BYTES),))
        except BaseException:
            self._seals = before
            raise

    def read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows that a SELECT finds."""
        with self._told():
            return self._database.execute(statement, values).fetchall()

    def put(self, table: str, *values: object) -> None:
        """Write a row, in place of the one with the same first column if there is one."""
        key = _TABLES[table].partition(" ")[0]
        columns = ", ".join(f"{column} = excluded.{column}" for column in (*_columns(table)[1:], "seal"))
        with self.transaction():
            self._forget(table, f"{key} = ?", (values[0],))
            self._insert(table, values, f" ON CONFLICT ({key}) DO UPDATE SET {columns}")

    def insert(self, table: str, *values: object) -> None:
        """Write a new row."""
        with self.transaction():
            self._insert(table, values, "")

    def count(self, table: str, key: object) -> None:
        """Add one to a row of a table of counts."""
        name, number = _columns(table)
        found = self.read(f"SELECT {number} FROM {table} WHERE {name} = ?", key)  # noqa: S608 - the names are ours
        self.put(table, key, found[0][0] + 1 if found else 1)

    def delete(self, table: str, where: str, *values: object) -> None:
        """Remove rows."""
        with self.transaction():
            self._forget(table, where, values)
            self._database.execute(f"DELETE FROM {table} WHERE {where}", values)  # noqa: S608 - the names are ours

    def _forget(self, table: str, where: str, values: tuple[object, ...]) -> None:
        """Take the seals of rows that go out of the total."""
        for (seal,) in self.read(f"SELECT seal FROM {table} WHERE {where}", *values):  # noqa: S608 - as above
            self._seals ^= int.from_bytes(seal)

    def _insert(self, table: str, values: tuple[object, ...], conflict: str) -> None:
        places = ", ".join("?" * (len(values) + 1))
        statement = f"INSERT INTO {table} VALUES ({places}){conflict}"  # noqa: S608 - the names are ours
        seal = _seal(table, values)
        self._database.execute(statement, (*values, seal))
        self._seals ^= int.from_bytes(seal)

    def _prepare(self) -> None:
        self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.execute("PRAGMA synchronous = EXTRA")  # the journal's removal is synced as well
        self._database.execute("PRAGMA foreign_keys = ON")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        ((version,),) = self.read("PRAGMA user_version")
        found = dict(self.read("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        expected = {**_STATEMENTS, "total": _TOTAL}
        if version == 0 and not found:
            none = f"INSERT INTO total VALUES (zeroblob({_SEAL_BYTES}))"  # noqa: S608 - a number of ours
            statements = ";".join((*_STATEMENTS.values(), _TOTAL, _INDEX, none))
            self._database.executescript(f"BEGIN IMMEDIATE; {statements}; PRAGMA user_version = {VERSION}; COMMIT;")
            return
        ((verdict,), *_) = self.read("PRAGMA integrity_check(1)")
        if verdict != "ok":
            raise DamagedLedgerError(f"{self.path}: {verdict}")
        if version != VERSION and found != expected:
            raise StateError(
                f"{self.path}: ledger version {version} is not known, this program knows {VERSION}; "
                "use the version of distreal-edge that wrote it, or another state folder"
            )
        if version != VERSION or found != expected:
            raise DamagedLedgerError(f"{self.path}: its tables are not those that were made")
        for table in _TABLES:
            for *values, seal in self._database.execute(f"SELECT * FROM {table}"):  # noqa: S608 - the names are ours
                if seal != _seal(table, tuple(values)):
                    raise DamagedLedgerError(f"{self.path}: a row of {table} has changed since it was written")
                self._seals ^= int.from_bytes(seal)
        if self.read("SELECT seals FROM total") != [(self._seals.to_bytes(_SEAL_BYTES),)]:
            raise DamagedLedgerError(f"{self.path}: a transaction was written or undone by half")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError:  # what SQLite says quotes the file
            raise DamagedLedgerError(f"{self.path}: the ledger cannot be used: it is not what was written") from None
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)  # none when Python itself refuses
            others = code in _OTHERS_FAULT or code & 0xFF in _OTHERS_FAULT
            full = code & 0xFF == sqlite3.SQLITE_FULL
            damaged = not others and not isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError))
            raise (DamagedLedgerError if damaged else FullDiskError if full else StateError)(
                f"{self.path}: the ledger cannot be used: {error}; "
                + ("the next start makes it anew" if damaged else "check the disk's space and the folder's owner")
            ) from error


def _columns(table: str) -> tuple[str, ...]:
    return tuple(column.strip().partition(" ")[0] for column in _TABLES[table].split(","))
