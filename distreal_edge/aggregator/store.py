"""The aggregator's files: models, updates of the open round, the table, the list of rounds."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distreal_edge.aggregator.ledger import model_name
from distreal_edge.durable import append_durably, make_folder, quarantine, rename_durably, sync_folder, write_durably
from distreal_edge.errors import StateError
from distreal_edge.transport import DiskError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["LATEST", "Keeping", "Store"]

_log = logging.getLogger(__name__)
LATEST = "latest.safetensors"


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which models stay: those after the `newest` rounds, and after each that `every` divides (0: no others)."""

    newest: int = 10
    every: int = 10

    def __call__(self, numbers: Iterable[int]) -> set[int]:
        """Return after which of these rounds the model stays; always the very newest, which an open round needs."""
        known = sorted(numbers)
        regular = {number for number in known if self.every and number % self.every == 0}
        return regular | set(known[-max(1, self.newest) :])


class Store:
    """Files under one state folder; every write is durable when it returns.

    Every method raises `StateError` for a file that cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folders that are missing, and remove what was never finished."""
        self.folder = folder
        self._models = folder / "models"
        self._updates = folder / "updates"
        try:
            for each in (folder, self._models, self._updates):
                make_folder(each)
                for unfinished in each.glob("*.unfinished"):
                    unfinished.unlink()
        except OSError as error:
            raise StateError(f"{folder}: cannot be used: {error.strerror}; check the folder's owner") from None

    # -- models --------------------------------------------------------------------------------------------------------

    def save_model(self, number: int, data: bytes) -> None:
        """Store the model after a round; 0 is the one to start from."""
        write_durably(self.model_path(number), data)

    def load_model(self, number: int) -> bytes:
        """Return the model after a round."""
        return _read(self.model_path(number))

    def model_path(self, number: int) -> Path:
        """Return where the model after a round is."""
        return self._models / model_name(number)

    def models(self) -> list[int]:
        """Return after which rounds there is a model, in order."""
        found = []
        for path in self._models.glob("round-*.safetensors"):
            number = path.name.removeprefix("round-").removesuffix(".safetensors")
            if number.isdecimal() and path.name == model_name(int(number)):
                found.append(int(number))
        return sorted(found)

    def prune_models(self, keeping: Keeping) -> None:
        """Remove the models that need not be kept. Not durable: what a power cut brings back is removed later."""
        known = self.models()
        kept = keeping(known)
        try:
            for number in known:
                if number not in kept:
                    self.model_path(number).unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"{self._models}: cannot be thinned out: {error.strerror}; check its owner") from None

    @property
    def latest_path(self) -> Path:
        """Where the newest model whose batch-norm statistics are measured is: the one to use and export."""
        return self.folder / LATEST

    @property
    def next_latest_path(self) -> Path:
        """Where the one is that takes its place once the ledger names it."""
        return self.folder / f"{LATEST}.next"

    def save_next_latest(self, data: bytes) -> None:
        """Store what `use_next_latest` then puts into place."""
        write_durably(self.next_latest_path, data)

    def use_next_latest(self) -> None:
        """Put the newest model whose statistics are measured into place."""
        rename_durably(self.next_latest_path, self.latest_path)

    # -- updates -------------------------------------------------------------------------------------------------------

    def save_update(self, device: str, uid: str, data: bytes) -> None:
        """Store an update of the open round."""
        write_durably(self.update_path(device, uid), data)

    def load_update(self, device: str, uid: str) -> bytes:
        """Return a stored update."""
        return _read(self.update_path(device, uid))

    def update_path(self, device: str, uid: str) -> Path:
        """Return where an update of the open round is. Neither part of the name can hold a dot."""
        return self._updates / f"{device}.{uid}.update"

    def sync_updates(self) -> None:
        """Make durable which updates there are; raise `DiskError`."""
        try:
            sync_folder(self._updates)
        except OSError as error:
            raise DiskError(f"{self._updates}: cannot be synced: {error.strerror}; check the disk") from None

    def update_files(self) -> list[Path]:
        """Return the files of all updates, in order."""
        return sorted(self._updates.glob("*.update"))

    def drop_updates(self) -> None:
        """Remove all updates: their round is closed and its model stored.

        Not durable: what a power cut brings back is removed at the next start.
        """
        try:
            for path in self._updates.glob("*.update"):
                path.unlink()
        except OSError as error:
            raise StateError(f"{self._updates}: cannot be emptied: {error.strerror}; check its owner") from None

    # -- what else there is --------------------------------------------------------------------------------------------

    @property
    def table_path(self) -> Path:
        """Where the table is."""
        return self.folder / "table.json"

    @property
    def open_path(self) -> Path:
        """Where the second copy of what the ledger knows of the open round is."""
        return self.folder / "open.json"

    @property
    def records_path(self) -> Path:
        """Where the list of closed rounds is."""
        return self.folder / "rounds.jsonl"

    def save_table(self, data: bytes) -> None:
        """Store the table."""
        write_durably(self.table_path, data)

    def save_open(self, data: bytes) -> None:
        """Store the second copy of what the ledger knows of the open round."""
        write_durably(self.open_path, data)

    def drop_open(self) -> None:
        """Remove the copy of a round that is closed. Not durable: one that comes back is too old to be used."""
        try:
            self.open_path.unlink(missing_ok=True)
        except OSError as error:
            raise StateError(f"{self.open_path}: cannot be removed: {error.strerror}; check its owner") from None

    def write_records(self, records: list[bytes]) -> None:
        """Write `rounds.jsonl`: one line per closed round."""
        write_durably(self.records_path, b"".join(record + b"\n" for record in records))

    def append_record(self, record: bytes) -> None:
        """Append a line to `rounds.jsonl`."""
        append_durably(self.records_path, record + b"\n")

    # -- damage --------------------------------------------------------------------------------------------------------

    def quarantine(self, path: Path, what: str, consequence: str) -> None:
        """Move a damaged file out of the way, if it is there, and say so in one line of the log."""
        if not path.is_symlink() and not path.exists():
            _log.error("%s: %s; %s", path, what, consequence)
            return
        moved = quarantine(path, self.folder)
        _log.error("%s: %s; moved to %s; %s", path, what, moved.relative_to(self.folder), consequence)


def read_or_none(path: Path) -> bytes | None:
    """Return a file's bytes, or None when it is not there or the disk does not give it back."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None when it is not there or the disk does not give it back."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def digest_of(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}; restore it from a backup") from None
