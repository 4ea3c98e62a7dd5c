"""The log of the long-running verbs: one line per message, for a person, for the journal, or as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Literal, TextIO

import click

from distreal_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Command = TypeVar("Command", bound=Callable[..., object])

__all__ = ["LogFormat", "log_format_option", "say_last", "start_logging"]

LogFormat = Literal["text", "json"]


def log_format_option(command: Command) -> Command:
    """Give a verb the option `--log-format`."""
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How lines of the log look.",
    )(command)


def start_logging(log_format: LogFormat = "text") -> None:
    """Log one line per state change to standard error.

    Text has the local time, but in the journal, which knows the time itself, each line's priority as `<N>`. JSON
    lines have `time` (Unix seconds), `level`, `logger`, `message` and, after a fault, `traceback`; for the journal the
    priority stands before them, and it takes it off again. `say_last` has the last of them.
    """
    journal = _is_journal(os.environ.get("JOURNAL_STREAM", ""))
    handler = _JsonHandler() if log_format == "json" else logging.StreamHandler()
    formatter: logging.Formatter
    if log_format == "json":
        formatter = _Json()
    elif journal:
        formatter = _OneLine("%(name)s: %(message)s")
    else:
        formatter = _OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(_Prioritised(formatter) if journal else formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def say_last(message: str) -> None:
    """Say in one line on standard error why the command ends: as a line of the log where that is JSON."""
    line = " ".join(message.splitlines())
    if any(isinstance(handler, _JsonHandler) for handler in logging.getLogger().handlers):
        logging.getLogger("distreal_edge").error("%s", line)
    else:
        click.echo(f"distreal-edge: {line}", err=True)


class _JsonHandler(logging.StreamHandler[TextIO]):
    """Lines for programs, every one of them."""


class _OneLine(logging.Formatter):
    """Whatever devices and files say ends up in messages: a message stays one line, and moves no cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        return printable(super().formatMessage(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Prioritised(logging.Formatter):
    """A formatter's lines with the priority of sd-daemon(3) before each of them, those of a traceback as well."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).split("\n"))


_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


def _is_journal(stream: str) -> bool:
    """Return whether standard error is the journal's stream: `JOURNAL_STREAM` is its device and inode."""
    try:
        device, inode = map(int, stream.split(":"))
        status = os.fstat(sys.stderr.fileno())
    except (ValueError, OSError):  # a stream that is no file has no number: io.UnsupportedOperation is both
        return False
    return (status.st_dev, status.st_ino) == (device, inode)
