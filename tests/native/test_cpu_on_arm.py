"""The same sources cross-compiled for aarch64 and run as boards would, where the tools for it are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

pytestmark = pytest.mark.skipif(
    COMPILER is None or EMULATOR is None,
    reason="needs Debian's g++-aarch64-linux-gnu and qemu-user-static",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("aarch64") / "features"
    sources = [ROOT / "csrc/cpu_features.cpp", ROOT / "csrc/instruction_set.cpp", ROOT / "tests/native/features.cpp"]
    flags = ["-std=c++20", "-O2", "-static", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
    assert COMPILER is not None
    subprocess.run([COMPILER, *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", target], check=True, timeout=100)
    return target


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("cortex-a72", "neon=1 lse=0 fp16=0 dotprod=0 sve=0 i8mm=0 -> neon"),  # Raspberry Pi 4
        ("cortex-a76", "neon=1 lse=1 fp16=1 dotprod=1 sve=0 i8mm=0 -> neon"),  # Raspberry Pi 5
    ],
)
def test_features_are_those_of_the_emulated_board(program: Path, processor: str, expected: str) -> None:
    assert EMULATOR is not None
    result = subprocess.run(
        [EMULATOR, program],
        env={**os.environ, "QEMU_CPU": processor},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert result.stdout.strip() == expected
