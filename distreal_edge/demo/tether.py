"""Become another program that dies with its parent: `python tether.py PARENT-PID PROGRAM ARGUMENTS...`.

Run by its path, before anything heavy is imported: the request to the kernel outlives the exec. It is made here and
not between fork and exec of the parent, where other threads of the parent make running Python unsafe.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for SIGKILL at the parent's death, then exec the program."""
    parent = int(sys.argv[1])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the request was made; then the kernel will not tell us any more.
    if os.getppid() == parent:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
