"""Databases that a search is kept in: opened at once by several processes, and named without their passwords."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import optuna
import sqlalchemy

from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["STORAGE_FAILURES", "file_url", "open_storage", "opening_errors", "reason_of", "without_password"]

STORAGE_FAILURES: Final = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
_LOCK_TIMEOUT_S: Final = 120.0
"""How long a process waits for another that writes into the same SQLite file."""
_OPENINGS: Final = 5
"""Processes that open a new database at once get in each other's way; those that lose try again, so many times."""
_PAUSE_S: Final = 0.5


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open a database for Optuna, so that several processes can do so at once, and take trials out of it.

    Raises `ConfigError` for one in memory, and whatever `opening_errors` makes one of.
    """
    if _is_in_memory(url):
        raise ConfigError(f"--storage {url} is in memory, where other processes cannot see it; name a file or a server")
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        arguments["connect_args"] = {"timeout": _LOCK_TIMEOUT_S}
    for opening in range(1, _OPENINGS + 1):
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=arguments)
            break
        except sqlalchemy.exc.DBAPIError as error:
            # Another process has made a table, or said which version it is, between this one's look and its own try.
            theirs = isinstance(error, sqlalchemy.exc.IntegrityError) or "already exists" in str(error)
            if not theirs or opening == _OPENINGS:
                raise
            time.sleep(_PAUSE_S)
    if storage.engine.name == "sqlite":
        _lock_while_reading(storage.engine)
    return storage


def file_url(path: Path) -> str:
    """Return the URL of a SQLite file; raise `ConfigError` when its path cannot be written as one."""
    url = sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()
    # Older versions of SQLAlchemy leave what means something in a URL as it is; Optuna fills in braces.
    if "{" in url or sqlalchemy.engine.make_url(url).database != str(path):
        raise ConfigError(f"{path} cannot be a database's URL; name the file without special characters")
    return url


def _is_in_memory(url: str) -> bool:
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # what is wrong is said where it is opened
        return False
    return parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}


def _lock_while_reading(engine: sqlalchemy.Engine) -> None:
    # Optuna takes a trial by reading its state and then writing it. Other databases lock its row from the reading on;
    # SQLite locks, the whole file, from the first writing on, and two processes would take the same trial.
    engine.dispose()

    @sqlalchemy.event.listens_for(engine, "connect")
    def _no_transactions_of_its_own(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def opening_errors(url: str) -> Iterator[None]:
    """Let whatever opening this storage may raise be one `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except (
        *STORAGE_FAILURES,
        ImportError,  # a database's driver
        OSError,
        LookupError,  # braces, which Optuna fills in
        ValueError,  # a port that is no number
        RuntimeError,  # tables of another version of Optuna
    ) as error:
        message = f"the search's storage {without_password(url)} cannot be opened: {reason_of(error)}"
        raise ConfigError(message) from None


def reason_of(error: BaseException) -> str:
    """Return what a database said, in one line, without the statement that it was asked."""
    cause = error.__cause__ or error
    said = (isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.orig) or cause
    return " ".join(str(said).split())[:300]


def without_password(url: str) -> str:
    """Return a database's URL to show; one that cannot be parsed is cut behind the last @."""
    try:
        return sqlalchemy.engine.make_url(url).set(query={}).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return repr(url.rpartition("@")[2].partition("?")[0])
