"""Which process this is, and whether one that left its name in a search's storage still lives."""

from __future__ import annotations

import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

__all__ = ["is_alive", "this_machine", "this_process"]

_SILENT_S: Final = 900.0
"""A process on another machine that said nothing for so long is taken for dead."""


def this_process() -> dict[str, Any]:
    """Return this process's name, as plain data; `at` is the time."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": this_machine(),
        "boot": _boot(),
        "pid": pid,
        "began": _began(pid),
        "at": time.time(),
    }


def is_alive(worker: dict[str, Any] | None) -> bool:
    """Return whether the process of this name lives; nobody does not.

    A pid counts only with the time at which its process began. Of processes on other machines only their silence is
    known: they live for 15 minutes after they wrote their name. One that wrote in what is the future here is judged by
    the same 15 minutes, or a clock that was set back would keep the dead alive.
    """
    if worker is None:
        return False
    if worker.get("machine") != this_machine():
        return bool(abs(time.time() - worker["at"]) < _SILENT_S)
    began = _began(worker["pid"])
    return bool(began is not None and worker["began"] == began and worker["boot"] == _boot())


@cache
def this_machine() -> str:
    """Return a name that no other machine should have: boards from one image share theirs, containers the number."""
    try:
        number = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        number = ""
    return f"{socket.gethostname()} {number[:12]}".strip()


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    # In clock ticks since the machine began, which no setting of the clock moves; None when nobody has this pid, or
    # only what a dead process leaves until its parent looks.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
