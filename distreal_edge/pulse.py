"""Tell a thread that works, however slowly, from one that is stuck: its signs of life, read from outside."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Pulse", "Sign", "is_alive"]


@dataclass(frozen=True, slots=True)
class Sign:
    """How a piece of work looked at one moment.

    `beats` counts what it finished, `cpu_ticks` the CPU time its threads have used. `wanting`: one of them runs, or
    waits for a CPU or for a disk, none of which it could hurry.
    """

    beats: int
    cpu_ticks: int = 0
    wanting: bool = False


def is_alive(before: Sign | None, now: Sign | None) -> bool:
    """Return whether work got on between two looks; None is work that was not going on.

    A thread that waits for a lock that nobody will ever release finishes nothing, uses no CPU time and asks for none.
    A slow one does at least one of the three, even where it gets crumbs of a core only.
    """
    return (
        before is None or now is None or now.wanting or (now.beats, now.cpu_ticks) != (before.beats, before.cpu_ticks)
    )


class Pulse:
    """Signs of life of one piece of work at a time; `beat` comes from its thread, `sign` is for anybody.

    `strict`: beats alone count, for a loop that has to turn, and must not do long work in a turn.
    """

    def __init__(self, *, strict: bool = False) -> None:
        """Begin at rest."""
        self._strict = strict
        self._beats = 0
        self._thread_id: int | None = None

    def beat(self) -> None:
        """Note that something was finished: a mini-batch, a wait, a turn of a loop."""
        self._beats += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be alive in this thread while inside; outside the work is at rest, and nothing is expected of it."""
        mine = threading.get_native_id()
        self._thread_id = mine
        self.beat()
        try:
            yield
        finally:
            if self._thread_id == mine:  # else the next piece of work has begun already
                self._thread_id = None

    def sign(self) -> Sign | None:
        """Return how the work looks now, or None while it is at rest."""
        thread_id = self._thread_id
        if thread_id is None:
            return None
        if self._strict:
            return Sign(self._beats)
        ticks, wanting = _threads_of(thread_id)
        return Sign(self._beats, ticks, wanting)


def _threads_of(thread_id: int) -> tuple[int, bool]:
    """Return the CPU ticks of a thread and of those that native code has started, and whether one wants to run.

    Native threads work for whoever calls; all of this process but Python's own are taken for them.
    """
    others = {each.native_id for each in threading.enumerate()} - {thread_id}
    ticks, wanting = 0, False
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) in others:
            continue
        try:
            # The name of the thread, in parentheses before all else, may hold anything.
            fields = (task / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        wanting |= fields[0] in {"R", "D"}
        ticks += int(fields[11]) + int(fields[12])
    return ticks, wanting
