"""Memory: what this machine can still give, and what this process holds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from distreal_edge.machine.files import read_text, whole

if TYPE_CHECKING:
    from distreal_edge.machine.files import Roots

__all__ = ["read_available_bytes", "read_resident_bytes"]

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def read_available_bytes(roots: Roots) -> int | None:
    """Return what can be had without swapping, as Linux itself estimates it; None when it does not say."""
    for line in (read_text(roots.proc / "meminfo") or "").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            kibibytes = whole(amount.removesuffix("kB"))
            return None if kibibytes is None or kibibytes < 0 else kibibytes * 1024
    return None


def read_resident_bytes(roots: Roots) -> int | None:
    """Return what this process holds in memory, as `top` shows it under RES; None when Linux does not say."""
    fields = (read_text(roots.proc / "self" / "statm") or "").split()
    pages = whole(fields[1]) if len(fields) > 1 else None
    return None if pages is None or pages < 0 else pages * _PAGE_BYTES
