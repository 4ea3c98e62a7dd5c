"""Child processes that never outlive the program that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

__all__ = ["Ended", "Processes", "last_lines"]

_POLL_S: Final = 0.02
_TETHER: Final = Path(__file__).with_name("tether.py")


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that is no longer running: its exit code, negative for a signal, and the log it left."""

    name: str
    code: int
    log: Path


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """Children by name, each in a session of its own and with its output in a log file.

    Their own sessions keep a Ctrl-C on the terminal away from them: the parent ends them in order. Leaving the context
    ends all of them; if the parent is killed without leaving it, the kernel kills them.
    """

    def __init__(self, *, grace_s: float = 5.0) -> None:
        self._grace_s = grace_s
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start a child; call it in the main thread, because the kernel ties the child's life to the calling thread.

        Raises StateError when the log cannot be written.
        """
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-S", "-E", str(_TETHER), str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
        except OSError as error:
            raise StateError(f"{name}: cannot start it with its log in {log}: {error}") from None
        self._children[name] = _Child(process, log)

    def ended(self) -> tuple[Ended, ...]:
        """Return the children that have ended by now."""
        return tuple(
            Ended(name, code, child.log)
            for name, child in self._children.items()
            if (code := _exit_code(child.process.pid)) is not None
        )

    def stop(self) -> None:
        """End all children, and whatever they started: SIGTERM, and SIGKILL to those still there after the grace."""
        children = [child.process for child in self._children.values()]
        self._children.clear()
        for process in children:
            _signal_group(process.pid, signal.SIGTERM)
        until_s = time.monotonic() + self._grace_s
        while time.monotonic() < until_s and any(_exit_code(process.pid) is None for process in children):
            time.sleep(_POLL_S)
        for process in children:
            # To all of them: what a child that has ended had started may still be there.
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()


def _exit_code(pid: int) -> int | None:
    """Return the exit code of a child, negative for a signal, None while it runs.

    The child is not reaped, so that its number stays its own and its group can still be signalled.
    """
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def last_lines(log: Path, count: int) -> tuple[str, ...]:
    """Return the last lines of a log, those that are not blank; none when it cannot be read."""
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return tuple(deque((line.rstrip() for line in lines if line.strip()), maxlen=count))
    except OSError:
        return ()


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
