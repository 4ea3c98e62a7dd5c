"""What the long-running verbs share: logging for a journal, a clean end on a signal, the way to the broker."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.config import Broker

__all__ = ["broker_arguments", "start_logging", "stopping_on_signals"]


class _OneLine(logging.Formatter):
    """Whatever devices and files say ends up in messages: a message stays one line, and moves no cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        line = super().formatMessage(record)
        return "".join(letter if letter.isprintable() else "?" for letter in line)


def start_logging() -> None:
    """Log one line per state change to standard error, with the local time."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


@contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """Give an event that SIGTERM, SIGINT and SIGHUP set, so that the program can end cleanly.

    A second signal ends it at once. After Ctrl-C the clean end is a `KeyboardInterrupt`, so that a shell script stops
    as well.
    """
    stop = threading.Event()
    interrupted = False
    before: dict[signal.Signals, Any] = {}

    def end(number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = number == signal.SIGINT
        stop.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            before[number] = signal.signal(number, end)
        yield stop
    finally:
        restore()
    if interrupted:
        raise KeyboardInterrupt


def broker_arguments(broker: Broker) -> dict[str, Any]:
    """Return what a `Session` needs to know about the broker; raise `ConfigError` when it would be talked to openly."""
    arguments: dict[str, Any] = {"host": broker.host, "port": broker.port, "allow_plaintext": broker.allow_plaintext}
    if not broker.allow_plaintext:
        from distreal_edge.transport import Session  # noqa: PLC0415 - --help must be quick

        Session(client_id="check", **arguments)  # connects to nothing until it is entered
    return arguments
