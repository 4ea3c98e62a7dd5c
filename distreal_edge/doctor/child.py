"""Do in a process of its own what might crash, hang, or take much memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

__all__ = ["ChildFailure", "run_child"]


class ChildFailure(Exception):  # noqa: N818 - nothing is wrong with this program
    """A child did not give an answer; the message says how it ended. `timed_out`: it was still at work."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        """Say how it ended."""
        super().__init__(message)
        self.timed_out = timed_out


def run_child(module: str, *arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run a module of ours, and return the JSON object that it prints; raise `ChildFailure`."""
    # -P: whatever lies in the folder that somebody is in must not be imported.
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise ChildFailure(f"not done after {timeout_s:.0f} s", timed_out=True) from None
    except OSError as error:  # too little memory, or a Python that this user may not start
        raise ChildFailure(f"{sys.executable} cannot be started: {error.strerror}") from None
    if ran.returncode < 0:
        raise ChildFailure(f"killed by {signal.Signals(-ran.returncode).name}")
    try:
        answer = json.loads(ran.stdout)
    except ValueError:
        last = (ran.stderr.strip().splitlines() or ["without a word"])[-1]
        raise ChildFailure(f"exit code {ran.returncode}: {last}") from None
    if not isinstance(answer, dict):
        raise ChildFailure(f"answered {answer!r}")
    return answer
