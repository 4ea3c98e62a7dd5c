"""Builds the program that holds kernels to the plain ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "native" / "kernels"
KERNELS = ROOT / "csrc" / "kernels"
PARTS = sorted(source for source in TESTS.glob("*.cpp") if source.name != "main.cpp")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")


def flags_of(instruction_set: str) -> list[str]:
    """Return the flags that an instruction set's kernels are compiled with, as CMakeLists.txt has them."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    common = re.search(r"set\(kernel_flags ([^)]*)\)", text)
    own = re.search(rf'kernels_{instruction_set}\.cpp\s+PROPERTIES COMPILE_OPTIONS "([^"]*)"', text)
    assert common is not None
    assert own is not None
    return own[1].replace("${kernel_flags}", ";".join(common[1].split())).split(";")


@dataclass
class KernelBuild:
    """Objects and programs of one compiler, each made once, as many at a time as there are `cores`."""

    compiler: list[str]
    folder: Path
    cores: int
    link_flags: list[str] = field(default_factory=list)
    made: dict[str, Path] = field(default_factory=dict)

    def object_of(self, name: str, source: Path, flags: list[str]) -> Path:
        if name not in self.made:
            target = self.folder / f"{name}.o"
            includes = [f"-I{ROOT / 'csrc'}", f"-I{TESTS}"]
            command = [*self.compiler, "-std=c++20", *WARNINGS, *flags, *includes, "-c", str(source), "-o", str(target)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert result.returncode == 0, result.stderr
            self.made[name] = target
        return self.made[name]

    def kernels(self, instruction_set: str) -> Path:
        source = KERNELS / f"kernels_{instruction_set}.cpp"
        return self.object_of(source.stem, source, flags_of(instruction_set))

    def program(self, instruction_set: str) -> Path:
        """Return the program that tries one instruction set's kernels, or the `plain` or the `broken` ones."""
        parts = [(source.stem, source, ["-O2"]) for source in (*PARTS, KERNELS / "geometry.cpp", KERNELS / "plain.cpp")]
        tested = [] if instruction_set == "plain" else [f"-DDISTREAL_TESTED_SET={instruction_set}_kernels"]
        parts.append((f"main_{instruction_set}", TESTS / "main.cpp", ["-O2", *tested]))
        with ThreadPoolExecutor(max_workers=self.cores) as pool:
            own = [] if instruction_set in {"plain", "broken"} else [pool.submit(self.kernels, instruction_set)]
            objects = [made.result() for made in own + [pool.submit(self.object_of, *part) for part in parts]]
        target = self.folder / f"hold_{instruction_set}"
        if target.exists():
            return target
        command = [*self.compiler, *self.link_flags, *map(str, objects), "-o", str(target)]
        subprocess.run(command, check=True, timeout=300)
        return target


def compiler_of_this_machine() -> list[str] | None:
    """Return what CMake would take: the environment's compiler, or one of the usual names."""
    named = shlex.split(os.environ.get("CXX", ""))
    found = named or [path for path in (shutil.which("g++"), shutil.which("c++")) if path is not None][:1]
    return found or None


@pytest.fixture(scope="session")
def kernel_build(tmp_path_factory: pytest.TempPathFactory, cores: int) -> KernelBuild:
    compiler = compiler_of_this_machine()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    return KernelBuild(compiler, tmp_path_factory.mktemp("kernels"), cores)


@pytest.fixture(scope="session")
def kernel_build_for_arm(tmp_path_factory: pytest.TempPathFactory, cores: int) -> KernelBuild:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu")
    return KernelBuild([compiler], tmp_path_factory.mktemp("kernels-for-arm"), cores, ["-static"])
