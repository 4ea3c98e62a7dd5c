"""The pieces around the kernels, each built alone with the sanitizers that suit it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
MEMORY = "address,undefined"

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")


def build(piece: str, sanitizer: str, folder: Path) -> Path:
    program = folder / piece
    sources = [ROOT / f"tests/native/pieces/{piece}.cpp", ROOT / f"csrc/{piece}.cpp"]
    flags = [*FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-pthread", f"-I{ROOT / 'csrc'}"]
    assert COMPILER is not None
    built = subprocess.run(
        [COMPILER, *flags, *sources, "-o", program], capture_output=True, text=True, timeout=100, check=False
    )
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip(f"g++ comes without the libraries of -fsanitize={sanitizer}")
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize(
    ("piece", "sanitizer"),
    [
        ("arena", MEMORY),
        ("images", MEMORY),
        ("memory_plan", MEMORY),
        ("threads", MEMORY),
        ("threads", "thread"),
    ],
)
def test_a_piece_passes_its_own_tests_under_sanitizers(piece: str, sanitizer: str, tmp_path: Path) -> None:
    program = build(piece, sanitizer, tmp_path)

    result = subprocess.run([program], capture_output=True, text=True, timeout=100, check=False)

    if "unexpected memory mapping" in result.stderr:
        pytest.skip("this kernel spreads addresses further than this thread sanitizer knows")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed: " in result.stdout
    assert "FAILED: " not in result.stdout
