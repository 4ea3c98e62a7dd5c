"""The wheel for boards, cross-built here: what it is called, what it needs, and that the oldest board can run it."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
PYTHON = f"{sys.version_info.major}{sys.version_info.minor}"
TAG = f"cp{PYTHON}-cp{PYTHON}-linux_aarch64"
MODULE = f"distreal_edge/_native.cpython-{PYTHON}-aarch64-linux-gnu.so"
# What Debian 12, and with it Raspberry Pi OS of 2023, offers at run time.
DEBIAN_12 = {"GLIBC": (2, 36), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)}
ADDRESS = re.compile(r"\b[0-9a-f]+ <[^>]*>$")
# Hints: older processors take them for nops.
HINTS = {"bti", "paciasp", "autiasp", "pacibsp", "autibsp", "xpaclri"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs Debian's g++-aarch64-linux-gnu"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, cores: int) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    result = subprocess.run(
        [sys.executable, ROOT / "cross/build_wheel.py", "--out", folder],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(cores)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def module(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MODULE, tmp_path_factory.mktemp("module")))


@pytest.fixture(scope="module")
def instructions(module: Path) -> list[str]:
    """Return every instruction as `mnemonic operands`, in order, with `.` for the addresses of this file."""
    text = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", module], capture_output=True, text=True, check=True
    ).stdout
    found = [line.split("\t", 1)[1] for line in text.splitlines() if re.match(r"\s+[0-9a-f]+:\t", line)]
    return [ADDRESS.sub(".", re.sub(r"\s*//.*", "", line)).replace("\t", " ").strip() for line in found]


def test_the_wheel_is_tagged_for_linux_on_aarch64_and_this_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        information = archive.read(f"distreal_edge-{VERSION}.dist-info/WHEEL").decode()

    assert wheel.name == f"distreal_edge-{VERSION}-{TAG}.whl"
    assert f"Tag: {TAG}\n" in information
    assert "Root-Is-Purelib: false\n" in information


def test_its_only_compiled_file_is_a_module_for_aarch64(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        compiled = [name for name in archive.namelist() if archive.read(name)[:4] == b"\x7fELF"]
        header = archive.read(MODULE)[:20]

    assert compiled == [MODULE]
    bits, order = header[4], header[5]
    (machine,) = struct.unpack("<H", header[18:20])
    assert (bits, order, machine) == (2, 1, 183)  # ELFCLASS64, little-endian, EM_AARCH64


def test_it_needs_only_libraries_that_every_board_with_python_and_numpy_has(module: Path) -> None:
    text = subprocess.run(
        ["aarch64-linux-gnu-readelf", "-d", module], capture_output=True, text=True, check=True
    ).stdout

    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))
    assert needed <= {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "ld-linux-aarch64.so.1"}


def test_it_needs_no_symbol_newer_than_debian_12(module: Path) -> None:
    text = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-T", module], capture_output=True, text=True, check=True
    ).stdout
    versions = {
        (name, tuple(int(part) for part in version.split(".")))
        for name, version in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)\b", text)
    }

    assert {"GLIBC", "GLIBCXX"} <= {name for name, _ in versions}
    assert [(name, version) for name, version in sorted(versions) if version > DEBIAN_12[name]] == []


def refused_on_armv8_0(instructions: set[str], folder: Path) -> set[str]:
    """Return the instructions that the assembler does not take for the first 64-bit ARM processors."""
    lines = sorted(instructions)
    source = folder / "instructions.s"
    source.write_text(".arch armv8-a+crc\n" + "\n".join(lines) + "\n", encoding="utf-8")
    result = subprocess.run(
        ["aarch64-linux-gnu-as", source, "-o", folder / "instructions.o"], capture_output=True, text=True, check=False
    )
    return {lines[int(number) - 2] for number in re.findall(r"\.s:(\d+): Error", result.stderr)}


def test_the_assembler_refuses_what_a_raspberry_pi_4_cannot_do(tmp_path: Path) -> None:
    old = {"fmla v0.4s, v1.4s, v2.s[0]", "ldaxr w0, [x1]", "b.ne .", "adrp x0, ."}
    new = {"casal x0, x1, [x2]", "ldaddal w0, w0, [x1]", "sdot v0.4s, v1.16b, v2.16b", "fmla v0.8h, v1.8h, v2.8h"}

    assert refused_on_armv8_0(old | new, tmp_path) == new


def test_instructions_that_a_raspberry_pi_4_lacks_are_only_reached_where_the_processor_has_them(
    instructions: list[str], tmp_path: Path
) -> None:
    plain = {line for line in instructions if line.split(" ")[0] not in HINTS and not line.startswith("udf")}
    newer = refused_on_armv8_0(plain, tmp_path)

    assert len(instructions) > 10_000
    unguarded = [
        instructions[number - 3 : number + 1]
        for number, line in enumerate(instructions)
        if line in newer
        # libgcc's helpers ask a flag that is set from HWCAP: `adrp, ldrb w16, cbz w16, casal`.
        and not (instructions[number - 1] == "cbz w16, ." and instructions[number - 2].startswith("ldrb w16, [x16"))
    ]
    assert unguarded == []
