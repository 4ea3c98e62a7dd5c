"""Remember that somebody wants us to end, so that the program can end in order."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["Interruption"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """A context manager that notes SIGINT, SIGTERM and SIGHUP instead of dying from them; only for the main thread.

    `name` is the first signal that arrived, None so far. Later ones change nothing: ending takes a few seconds.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def __enter__(self) -> Self:
        # Asked now, because a terminal that is gone does not say any more that it was one.
        self._terminals = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream and stream.isatty()]
        # A SIGHUP that was ignored from the start (nohup) stays ignored.
        self._before = {
            number: signal.signal(number, self._note)
            for number in _SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        if number == signal.SIGHUP:
            self._leave_the_terminals()

    def _leave_the_terminals(self) -> None:
        """Point output that went to the terminal, which is gone, at nothing, so that writing does not fail."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in self._terminals:
            os.dup2(nothing, descriptor)
        os.close(nothing)
