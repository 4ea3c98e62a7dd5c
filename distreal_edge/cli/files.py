"""Files on the command line, as several verbs look for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_there"]


def is_there(path: Path) -> bool:
    """Return whether there is a file or folder of this name; there is none of a name that is too long for any."""
    try:
        return path.exists()
    except OSError:
        return False
