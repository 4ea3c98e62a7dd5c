"""Whole training steps, cross-compiled and run as the boards' processors would, against plain kernels in doubles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import KernelBuild

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = 25
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
# All of the engine but what binds it to Python.
ENGINE = [
    *(path for path in (ROOT / "csrc").glob("*.cpp") if not re.match(r"module|bind_|bench", path.name)),
    *(ROOT / "csrc/kernels" / f"{name}.cpp" for name in ("choose", "geometry", "plain")),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(EMULATOR is None, reason="needs Debian's qemu-user-static"),
]


@pytest.fixture(scope="module")
def program(kernel_build_for_arm: KernelBuild) -> Path:
    build = kernel_build_for_arm
    sources = {"steps": ROOT / "tests/native/steps/main.cpp"} | {source.stem: source for source in ENGINE}
    with ThreadPoolExecutor(max_workers=build.cores) as pool:
        kernels = pool.submit(build.kernels, "neon")
        objects = list(pool.map(build.object_of, sources, sources.values(), repeat(["-O2"])))
    target = build.folder / "train"
    command = [*build.compiler, *build.link_flags, *objects, kernels.result(), "-o", target]
    subprocess.run(command, check=True, timeout=100)
    return target


@pytest.mark.parametrize("processor", ["cortex-a72", "cortex-a76"])  # Raspberry Pi 4 and 5
def test_random_networks_are_trained_as_plain_kernels_do_it_and_always_alike(program: Path, processor: str) -> None:
    assert EMULATOR is not None

    result = subprocess.run(
        [EMULATOR, program, str(NETWORKS)],
        env={**os.environ, "QEMU_CPU": processor},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    for instruction_set in ("neon", "plain"):
        assert len(re.findall(rf"^network \d+: {instruction_set} passed", result.stdout, re.MULTILINE)) == NETWORKS
