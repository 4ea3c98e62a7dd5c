"""Build a wheel for 64-bit ARM boards here, with Debian's cross compiler: what scripts/wheel-aarch64 runs.

    .venv/bin/python cross/build_wheel.py --out wheelhouse

Needs the extra `build` of pyproject.toml and an aarch64-linux-gnu-g++. docs/arm.md explains the headers.
"""
# ruff: noqa: INP001, T201

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPILER = "aarch64-linux-gnu-g++"
TOOLCHAIN = ROOT / "cross/aarch64-linux-gnu.cmake"
# What pyconfig.h measures, and how C++ calls it, where that is not the macro's own name in small letters.
TYPES = {
    "_BOOL": "bool",
    "LONG_DOUBLE": "long double",
    "LONG_LONG": "long long",
    "VOID_P": "void*",
    "INT": "int",
    "LONG": "long",
    "SHORT": "short",
    "FLOAT": "float",
    "DOUBLE": "double",
}
# What configure found out about x86's processors. No header that a module includes asks for it; a later one may.
ONLY_ON_X86 = re.compile(r"^#define (HAVE_GCC_ASM_FOR_X64|HAVE_GCC_ASM_FOR_X87|X87_DOUBLE_ROUNDING)\b.*$", re.MULTILINE)


def own_configuration() -> str:
    """Return the text of this Python's pyconfig.h."""
    path = Path(sysconfig.get_config_h_filename())
    text = path.read_text(encoding="utf-8")
    # Debian's is a signpost to one for each architecture, and those of others are not installed.
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch and f"<{multiarch}/" in text:
        text = (path.parent.parent / multiarch / path.parent.name / path.name).read_text(encoding="utf-8")
    return text


def make_headers(folder: Path) -> None:
    """Put Python's headers for aarch64 into a new folder: this Python's own, without what is about x86."""
    include = Path(sysconfig.get_path("include"))
    folder.mkdir()
    for item in include.iterdir():
        if item.name != "pyconfig.h":
            (folder / item.name).symlink_to(item)
    (folder / "pyconfig.h").write_text(ONLY_ON_X86.sub("", own_configuration()), encoding="utf-8")


def check_headers(folder: Path) -> None:
    """End with the compiler's complaint unless every size that the headers state is what aarch64 has."""
    text = (folder / "pyconfig.h").read_text(encoding="utf-8")
    claims = re.findall(r"^#define (SIZEOF|ALIGNOF)_(\w+) (\d+)$", text, re.MULTILINE)
    if not claims or re.search(r"^#define (WORDS_BIGENDIAN|Py_DEBUG)\b", text, re.MULTILINE):
        sys.exit(f"{sysconfig.get_config_h_filename()} is not one of a 64-bit little-endian release of Python")
    checks = ["#include <Python.h>", "#include <cstdint>", "#include <ctime>", "#include <pthread.h>"]
    for kind, macro, value in claims:
        kind_of_type = TYPES.get(macro, macro.lower())
        checks.append(f'static_assert({kind.lower()}({kind_of_type}) == {value}, "{kind}_{macro}");')
    checks.append(f"static_assert(PY_VERSION_HEX == {sys.hexversion});")
    done = subprocess.run(
        [COMPILER, "-std=c++20", "-fsyntax-only", f"-I{folder}", "-x", "c++", "-"],
        input="\n".join(checks) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"this Python's headers do not describe Python on aarch64:\n{done.stderr}")


def build(headers: Path, out: Path) -> Path:
    """Build the wheel; return where it is."""
    suffix = f".cpython-{sys.version_info.major}{sys.version_info.minor}-aarch64-linux-gnu.so"
    environment = {
        **os.environ,
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SETUPTOOLS_EXT_SUFFIX": suffix,
        "CMAKE_TOOLCHAIN_FILE": str(TOOLCHAIN),
        # pybind11 would ask the running Python for the suffix.
        "SKBUILD_CMAKE_ARGS": f"-DPython_INCLUDE_DIR={headers};-DPYTHON_MODULE_EXTENSION={suffix}",
        # Flags that suit this machine, as somebody may have set them, would be wrong or fatal there.
        "CXXFLAGS": "",
        "LDFLAGS": "",
    }
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, str(ROOT)],
            env=environment,
            check=False,
        )
        if done.returncode != 0:
            sys.exit("the wheel could not be built")
        (wheel,) = Path(folder).glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, out / wheel.name))


def main() -> None:
    """Make and check headers, and build with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "wheelhouse", help="the folder for the wheel")
    arguments = parser.parse_args()
    if shutil.which(COMPILER) is None:
        sys.exit(f"{COMPILER} is missing: install Debian's g++-aarch64-linux-gnu")
    with tempfile.TemporaryDirectory() as folder:
        headers = Path(folder) / "include"
        make_headers(headers)
        check_headers(headers)
        print(build(headers, arguments.out))


if __name__ == "__main__":
    main()
