"""The aggregator's files: models, updates of the open round, the table, the list of rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.durable import remove_durably, write_durably
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Store"]


class Store:
    """Files under one state folder; every write is durable when it returns."""

    def __init__(self, folder: Path) -> None:
        """Make the folders that are missing, and remove what was never finished."""
        self.folder = folder
        self._models = folder / "models"
        self._updates = folder / "updates"
        for each in (folder, self._models, self._updates):
            each.mkdir(parents=True, exist_ok=True)
            for unfinished in each.glob("*.unfinished"):
                unfinished.unlink()

    def save_model(self, number: int, data: bytes) -> None:
        """Store the model after a round; 0 is the one to start from."""
        write_durably(self._model(number), data)

    def load_model(self, number: int) -> bytes:
        """Return the model after a round; raise `StateError` when its file is gone."""
        return _read(self._model(number))

    def save_latest(self, data: bytes) -> None:
        """Store the newest model whose batch-norm statistics are measured: the one to use and export."""
        write_durably(self.folder / "latest.safetensors", data)

    def save_update(self, uid: str, data: bytes) -> None:
        """Store an update of the open round."""
        write_durably(self._update(uid), data)

    def load_update(self, uid: str) -> bytes:
        """Return a stored update; raise `StateError` when its file is gone."""
        return _read(self._update(uid))

    def drop_updates(self) -> None:
        """Remove all updates: their round is closed and its model stored."""
        for path in self._updates.glob("*.update"):
            remove_durably(path)

    def keep_table(self, data: bytes) -> None:
        """Store the table, or raise `StateError` when another one is in use already."""
        path = self.folder / "table.json"
        if path.exists() and path.read_bytes() != data:
            raise StateError(f"{path}: this federation trains with another table; give the new one a state folder")
        if not path.exists():
            write_durably(path, data)

    def write_records(self, records: list[bytes]) -> None:
        """Write `rounds.jsonl`: one line per closed round."""
        write_durably(self.folder / "rounds.jsonl", b"".join(record + b"\n" for record in records))

    def _model(self, number: int) -> Path:
        return self._models / f"round-{number:04d}.safetensors"

    def _update(self, uid: str) -> Path:
        return self._updates / f"{uid}.update"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}; restore it from a backup") from None
