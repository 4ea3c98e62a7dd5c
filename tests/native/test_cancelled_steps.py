"""Steps that are cancelled in every call of a kernel in turn, in a program of its own under sanitizers."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = 2
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror", "-pthread"]
# The engine, but neither what binds it to Python nor what chooses among instruction sets.
ENGINE = [
    *(
        path
        for path in (ROOT / "csrc").glob("*.cpp")
        if not re.match(r"module|bind_|bench|cpu_features|instruction_set", path.name)
    ),
    *(ROOT / "csrc/kernels" / f"{name}.cpp" for name in ("geometry", "plain")),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # compiles, maybe on a busy board
    pytest.mark.skipif(COMPILER is None, reason="needs g++"),
]


def build(sanitizer: str, folder: Path, cores: int) -> Path:
    assert COMPILER is not None
    command = [COMPILER, *FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/native/kernels'}"]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        made = subprocess.run(
            [*command, *includes, "-c", source, "-o", target], capture_output=True, text=True, timeout=300, check=False
        )
        assert made.returncode == 0, made.stderr
        return target

    with ThreadPoolExecutor(max_workers=cores) as pool:
        objects = list(pool.map(compiled, [ROOT / "tests/native/steps/cancelled.cpp", *ENGINE]))
    program = folder / "cancelled_steps"
    linked = subprocess.run(
        [*command, *objects, "-o", program], capture_output=True, text=True, timeout=100, check=False
    )
    if "cannot find" in linked.stderr and "san" in linked.stderr:
        pytest.skip(f"g++ comes without the libraries of -fsanitize={sanitizer}")
    assert linked.returncode == 0, linked.stderr
    return program


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_step_that_is_cancelled_anywhere_is_as_if_it_had_never_been(
    sanitizer: str, tmp_path: Path, cores: int
) -> None:
    program = build(sanitizer, tmp_path, cores)

    result = subprocess.run([program, str(NETWORKS)], capture_output=True, text=True, timeout=300, check=False)

    if "unexpected memory mapping" in result.stderr:
        pytest.skip("this kernel spreads addresses further than this thread sanitizer knows")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall(r"^network \d+: passed, [1-9]\d* steps cancelled$", result.stdout, re.MULTILINE)) == NETWORKS
