"""How long work that can go on is ended from outside."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["going_on_later"]


@contextmanager
def going_on_later() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the command as Ctrl-C does, and say that it can be given again."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in handlers.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("distreal-edge: stopped; the same command goes on from here", err=True)
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
