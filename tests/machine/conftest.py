from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from distreal_edge.machine import Roots

if TYPE_CHECKING:
    from pathlib import Path


class Lay(Protocol):
    """Write files below /proc and /sys of a machine of the test's own, by their absolute paths."""

    def __call__(self, files: dict[str, str]) -> Roots: ...


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    roots = Roots(tmp_path / "proc", tmp_path / "sys")

    def write(files: dict[str, str]) -> Roots:
        for name, text in files.items():
            path = tmp_path / name.removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return roots

    return write
