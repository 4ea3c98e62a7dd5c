"""The manners of a guest: the lowest priority for processor and disk, and threads where nobody else works."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["become_guest", "confine_threads"]

_log = logging.getLogger(__name__)
_LOWEST: Final = 19
_AUTOGROUP: Final = Path("/proc/self/autogroup")
_TASKS: Final = Path("/proc/self/task")


def become_guest() -> None:
    """Give this thread, and all that it starts from now on, the lowest priority that Linux has.

    `SCHED_IDLE` runs when no ordinary thread of its group wants to, and the disk's idle class likewise. What a sandbox
    forbids is told in the log, and left.
    """
    refused = [what for what, step in _STEPS.items() if not _done(step)]
    if refused:
        _log.warning("this process may not lower its own priority (%s); others may feel it", ", ".join(refused))


def confine_threads(cpus: Iterable[int]) -> None:
    """Let all threads but the main one run on these CPUs only.

    The main thread's affinity stays what the owner made it: by it `Monitor` knows what this process may use.
    """
    allowed = frozenset(cpus)
    for task in _TASKS.iterdir():
        if int(task.name) != os.getpid():
            # It may have ended meanwhile, or a CPU may have been switched off or taken out of our cpuset.
            with suppress(OSError):
                os.sched_setaffinity(int(task.name), allowed)


def _lower_autogroup() -> None:
    # Linux may share processors out between sessions first, and count priorities only inside of one. A session that we
    # share with somebody, as in a terminal, is not ours to lower.
    if os.getsid(0) == os.getpid() and _AUTOGROUP.exists():
        _AUTOGROUP.write_text(str(_LOWEST), encoding="ascii")


_STEPS: Final[dict[str, Callable[[], object]]] = {
    "scheduling policy": lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)),
    "nice value": lambda: os.setpriority(os.PRIO_PROCESS, 0, _LOWEST),
    "disk priority": lambda: psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE),
    "session's share": _lower_autogroup,
}


def _done(step: Callable[[], object]) -> bool:
    try:
        step()
    except (OSError, psutil.Error, ValueError):
        return False
    return True
