"""Every instruction set's kernels against the plain ones, and the plain ones against formulas and differences."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from distreal_edge import _native

if TYPE_CHECKING:
    from conftest import KernelBuild

CASES = 250
SETS = _native.instruction_sets()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # compiles, maybe on a busy board


@pytest.mark.parametrize("instruction_set", SETS)
def test_every_kernel_agrees_with_the_plain_ones_in_double_precision(
    kernel_build: KernelBuild, instruction_set: str
) -> None:
    program = kernel_build.program(instruction_set)

    result = subprocess.run([program, str(CASES)], capture_output=True, text=True, timeout=300, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"{instruction_set}: ")


@pytest.mark.parametrize("kernel", ["gather", "depthwise_weight", "moments", "copy", "sgd", "add"])
def test_a_fault_of_each_kind_is_noticed(kernel_build: KernelBuild, kernel: str) -> None:
    program = kernel_build.program("broken")

    result = subprocess.run([program, str(CASES), kernel], capture_output=True, text=True, timeout=300, check=False)

    assert result.returncode != 0
    assert f"FAILED {kernel} " in result.stdout or f"a signal stopped {kernel} " in result.stderr


@pytest.mark.parametrize("kernel", ["activate", "pool_forward"])
def test_what_is_right_in_faulty_kernels_is_not_blamed(kernel_build: KernelBuild, kernel: str) -> None:
    program = kernel_build.program("broken")

    result = subprocess.run([program, str(CASES), kernel], capture_output=True, text=True, timeout=300, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


# The linker keeps one copy of a function that several objects define, for all processors: one made for AVX-512 would
# then stop a board that lacks it. So whatever an object shows to others must carry its instruction set's name.
@pytest.mark.parametrize("instruction_set", [name for name in SETS if name != "plain"])
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
def test_kernels_share_no_function_with_other_instruction_sets(kernel_build: KernelBuild, instruction_set: str) -> None:
    in_its_namespace = re.compile(rf"_Z(GV)?Z?NK?8distreal{len(instruction_set)}{instruction_set}")
    of_its_name = re.compile(rf"_ZN8distreal\d+{instruction_set}_[a-z]+Ev")

    listed = subprocess.run(
        ["nm", "--defined-only", "--extern-only", "--format=posix", kernel_build.kernels(instruction_set)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    names = sorted({line.split()[0] for line in listed.stdout.splitlines()})
    assert any(f"{instruction_set}_kernels" in name for name in names)
    assert [name for name in names if not in_its_namespace.match(name) and not of_its_name.fullmatch(name)] == []
