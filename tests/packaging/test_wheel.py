"""What pip would install, built from these sources without network."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # compiles everything


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        capture_output=True,
        text=True,
        timeout=800,  # the kernels of three instruction sets, maybe on a busy board
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_the_package_its_types_and_the_compiled_module(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = {file.relative_to(ROOT).as_posix() for file in (ROOT / "distreal_edge").rglob("*.py")}

    assert sources <= names
    assert {"distreal_edge/py.typed", "distreal_edge/_native.pyi"} <= names
    assert "distreal_edge/_native" + sysconfig.get_config_var("EXT_SUFFIX") in names


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    folders = {name.split("/")[0] for name in wheel.namelist()}

    assert folders == {"distreal_edge", f"distreal_edge-{PROJECT['version']}.dist-info"}


def test_the_wheel_carries_licence_and_entry_point(wheel: zipfile.ZipFile) -> None:
    information = f"distreal_edge-{PROJECT['version']}.dist-info"
    metadata = HeaderParser().parsestr(wheel.read(f"{information}/METADATA").decode())

    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{information}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"distreal-edge = distreal_edge.cli:main" in wheel.read(f"{information}/entry_points.txt")


def test_a_device_needs_neither_pytorch_nor_anything_for_tests(wheel: zipfile.ZipFile) -> None:
    metadata = HeaderParser().parsestr(wheel.read(f"distreal_edge-{PROJECT['version']}.dist-info/METADATA").decode())
    required = {
        line.split(">")[0].split("=")[0] for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line
    }

    assert required == {"numpy", "psutil", "paho-mqtt", "safetensors", "msgspec", "click", "rich"}
