"""The aggregator's files: models, updates of the open round, the table, the list of rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.durable import write_durably
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Store"]


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
                each.mkdir(parents=True, exist_ok=True)
                for unfinished in each.glob("*.unfinished"):
                    unfinished.unlink()
        except OSError as error:
            raise StateError(f"{folder}: cannot be used: {error.strerror}; check the folder's owner") from None

    def save_model(self, number: int, data: bytes) -> None:
        """Store the model after a round; 0 is the one to start from."""
        write_durably(self.model_path(number), data)

    def load_model(self, number: int) -> bytes:
        """Return the model after a round."""
        return _read(self.model_path(number))

    def model_path(self, number: int) -> Path:
        """Return where the model after a round is."""
        return self._models / f"round-{number:04d}.safetensors"

    def save_latest(self, data: bytes) -> None:
        """Store the newest model whose batch-norm statistics are measured: the one to use and export."""
        write_durably(self.folder / "latest.safetensors", data)

    def save_update(self, device: str, uid: str, data: bytes) -> None:
        """Store an update of the open round."""
        write_durably(self.update_path(device, uid), data)

    def load_update(self, device: str, uid: str) -> bytes:
        """Return a stored update."""
        return _read(self.update_path(device, uid))

    def update_path(self, device: str, uid: str) -> Path:
        """Return where an update of the open round is. Neither part of the name can hold a dot."""
        return self._updates / f"{device}.{uid}.update"

    def drop_updates(self) -> None:
        """Remove all updates: their round is closed and its model stored.

        Not durable: what a power cut brings back is removed at the next start.
        """
        try:
            for path in self._updates.glob("*.update"):
                path.unlink()
        except OSError as error:
            raise StateError(f"{self._updates}: cannot be emptied: {error.strerror}; check its owner") from None

    def keep_table(self, data: bytes) -> None:
        """Store the table, or raise `StateError` when another one is in use already."""
        path = self.folder / "table.json"
        if not path.exists():
            write_durably(path, data)
        elif _read(path) != data:
            raise StateError(f"{path}: this federation trains with another table; give the new one a state folder")

    def write_records(self, records: list[bytes]) -> None:
        """Write `rounds.jsonl`: one line per closed round."""
        write_durably(self.folder / "rounds.jsonl", b"".join(record + b"\n" for record in records))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}; restore it from a backup") from None
