"""The exceptions that distreal-edge raises on purpose, each with the exit code its command ends with.

A message says what is wrong, where, and what to do. The command line prints it as one line, without a traceback.
"""

from __future__ import annotations

__all__ = [
    "CancellationError",
    "ConfigError",
    "DataError",
    "DistrealError",
    "FullDiskError",
    "NetworkError",
    "ProtocolError",
    "StateError",
    "TableError",
    "TransportError",
    "printable",
]


class DistrealError(Exception):
    """Base of every error that is raised on purpose. Exit code 1.

    Its text is one line and moves no cursor, whatever it quotes.
    """

    exit_code = 1

    def __str__(self) -> str:
        """Return the message, printable."""
        return printable(super().__str__())


class CancellationError(DistrealError):
    """Work was cancelled before its end, and has changed nothing. Exit code 1."""


class ConfigError(DistrealError, ValueError):
    """A setting, a configuration file or a combination of arguments is wrong. Exit code 2."""

    exit_code = 2


class NetworkError(DistrealError, ValueError):
    """A network cannot be traced, built, read or written. Exit code 3."""

    exit_code = 3


class DataError(DistrealError, ValueError):
    """Images, labels, subsets or a dataset are missing, damaged or of the wrong shape. Exit code 4."""

    exit_code = 4


class TableError(DistrealError, ValueError):
    """A table of dropout vectors is damaged or belongs to another network. Exit code 5."""

    exit_code = 5


class TransportError(DistrealError):
    """The broker cannot be reached, refuses us, or ends the session. Exit code 6."""

    exit_code = 6


class ProtocolError(DistrealError, ValueError):
    """Something that arrived over the wire is malformed. Exit code 7."""

    exit_code = 7


class StateError(DistrealError):
    """The state directory is in use, unwritable or holds what cannot be read. Exit code 8."""

    exit_code = 8


class FullDiskError(StateError):
    """The disk has no room for what was to be written, which may be tried again. Exit code 8."""


def printable(text: str) -> str:
    """Return the text with a question mark for whatever would end its line or move a cursor.

    What others say, devices and files, ends up in messages, logs and terminals.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)
