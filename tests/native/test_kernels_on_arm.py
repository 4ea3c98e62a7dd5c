"""NEON's kernels, cross-compiled and held to the plain ones as the boards' processors would run them."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import KernelBuild

CASES = 40
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(EMULATOR is None, reason="needs Debian's qemu-user-static"),
]


@pytest.mark.parametrize("processor", ["cortex-a72", "cortex-a76"])  # Raspberry Pi 4 and 5
@pytest.mark.parametrize("instruction_set", ["neon", "plain"])
def test_every_kernel_agrees_with_the_plain_ones_in_double_precision(
    kernel_build_for_arm: KernelBuild, instruction_set: str, processor: str
) -> None:
    assert EMULATOR is not None
    program = kernel_build_for_arm.program(instruction_set)

    result = subprocess.run(
        [EMULATOR, program, str(CASES)],
        env={**os.environ, "QEMU_CPU": processor},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"{instruction_set}: ")
