"""Read the small files below /proc and /sys. What is absent, forbidden or odd is None, and nothing raises."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Roots", "is_folder", "names_in", "read_text", "read_whole", "whole"]

_LARGEST_BYTES: Final = 2**20
_LARGEST_DIGITS: Final = 20
"""What 64 bits need; anything longer is no counter of Linux, and may be too large for a float."""


@dataclass(frozen=True, slots=True)
class Roots:
    """Where Linux describes itself. Tests hand in folders of their own.

    Mount points outside of /sys are looked for beside `sys`, which for the real one is the root folder.
    """

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")

    def mounted(self, mount_point: str) -> Path:
        """Return the folder behind a mount point, which /proc names by its absolute path."""
        parts = mount_point.strip("/").split("/")
        return self.sys.joinpath(*parts[1:]) if parts[0] == "sys" else self.sys.parent.joinpath(*parts)


def read_text(path: Path | str) -> str | None:
    """Return a file's text without white space and zero bytes around it, or None."""
    # Not Path.read_text(), and paths are often plain text: four times a second on a small board, joining paths and
    # making buffers and decoders would take longer than Linux takes to answer.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        parts = []
        left = _LARGEST_BYTES
        while left > 0 and (part := os.read(descriptor, min(left, 65536))):
            parts.append(part)
            left -= len(part)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace").strip(" \0\n")


def read_whole(path: Path | str) -> int | None:
    """Return the whole number that a file holds, or None."""
    return whole(read_text(path) or "")


def whole(text: str) -> int | None:
    """Return a decimal whole number, or None when the text is none or is beyond 64 bits."""
    digits = text.strip()
    unsigned = digits.removeprefix("-")
    if not (unsigned.isascii() and unsigned.isdigit() and len(unsigned) <= _LARGEST_DIGITS):
        return None
    return int(digits)


def names_in(folder: Path | str) -> list[str]:
    """Return the sorted names in a folder; none when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except (OSError, ValueError):
        return []


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder, as far as we may look."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
