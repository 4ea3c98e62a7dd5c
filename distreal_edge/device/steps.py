"""`steps.csv`: one line per mini-batch, for those who want to see what a device did."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from distreal_edge.device.trainer import MiniBatch
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["StepLog"]

_log = logging.getLogger(__name__)
_LONGEST_LINE_BYTES = 4096


class StepLog:
    """A context manager around the file; without a path nothing is written.

    Half a line that a kill or a full disk has left is cut off before anything is appended. Lines come from the
    trainer's thread, which may outlive the file by a mini-batch. A disk that fills up ends the file and not the
    training.
    """

    def __init__(self, path: Path | None) -> None:
        """Prepare to append to `path`."""
        self._path = path
        self._open = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                new = _without_lines(self._path)
                self._file = self._path.open("a", newline="", encoding="utf-8", buffering=1)
                self._writer = csv.writer(self._file)
                if new:
                    self._writer.writerow([field.name for field in dataclasses.fields(MiniBatch)])
            except OSError as error:
                raise StateError(f"{self._path}: cannot be written: {error.strerror}; check the folder") from None
            self._open = True
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            if self._open:
                self._open = False
                self._file.close()

    def write(self, step: MiniBatch) -> None:
        """Append a line."""
        with self._lock:
            if not self._open:
                return
            try:
                self._writer.writerow(dataclasses.astuple(step))
            except OSError as error:
                self._open = False
                with suppress(OSError):
                    self._file.close()
                _log.warning("%s: no more mini-batches are written down: %s", self._path, error.strerror)


def _without_lines(path: Path) -> bool:
    """Cut off half a line at the end of a file, and return whether there is no line in it, or no file."""
    if not path.exists():
        return True
    if not path.is_file():  # a pipe, for somebody who looks on
        return False
    with path.open("rb+") as file:
        tail_from = max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE_BYTES)
        file.seek(tail_from)
        tail = file.read()
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            file.truncate(tail_from + whole)
        return tail_from + whole == 0
