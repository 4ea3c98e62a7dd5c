from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from distreal_edge.identity import KeyFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture(scope="session")
def openssl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Ask OpenSSL's own command; it says with its exit status whether it agrees."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl")

    def ask(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    return ask


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The keys of a federation with two devices, of which one was revoked. Only to be read."""
    folder = KeyFolder.create(
        tmp_path_factory.mktemp("identity") / "keys", "garden", ("laptop.lan", "192.168.7.1", "fd00::7"), 8883, NOW
    )
    folder.add(["pi-1", "pi-2"], NOW)
    folder.revoke(["pi-2"], NOW)
    return folder.path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> KeyFolder:
    """The same, to be changed."""
    return KeyFolder(shutil.copytree(made, tmp_path / "keys"))
