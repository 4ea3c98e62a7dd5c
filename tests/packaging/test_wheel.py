"""What pip would install, built from these sources without network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "distreal_edge" / "tables").glob("*.json"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # compiles everything


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, cores: int) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        capture_output=True,
        text=True,
        timeout=800,  # the kernels of three instruction sets, maybe on a busy board
        check=False,
        env={**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": str(cores)},
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


def test_the_wheel_holds_the_tables_and_none_of_the_evidence_for_them_and_what_a_broker_is_given(
    wheel: zipfile.ZipFile,
) -> None:
    known = (".py", ".pyi", ".so", "py.typed")
    other = [name for name in wheel.namelist() if name.startswith("distreal_edge/") and not name.endswith(known)]
    given = [ROOT / "distreal_edge" / "identity" / name for name in ("acl", "mosquitto-tls.conf")]

    assert {name: wheel.read(name) for name in other} == {
        file.relative_to(ROOT).as_posix(): file.read_bytes() for file in (*TABLES, *given)
    }


def test_the_sources_that_are_distributed_hold_the_tables_too(tmp_path: Path) -> None:
    program = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, timeout=300, check=True)
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {f"distreal_edge/tables/{table.name}" for table in TABLES} <= names


def test_tables_are_found_where_only_the_wheel_is_installed(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    program = (
        "import distreal_edge; from distreal_edge.search import shipped_table, shipped_tables\n"
        "print(distreal_edge.__file__)\n"
        "for name in shipped_tables(): print(name, len(shipped_table(name).rows))"
    )
    # Without site: a developer's import hook would bring in the checkout.
    said = subprocess.run(
        [sys.executable, "-S", "-P", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path / 'installed'}:{sysconfig.get_path('purelib')}"},
    ).stdout.splitlines()

    assert said[0].startswith(str(tmp_path))
    names = {line.split()[0] for line in said[1:]}
    assert names == {table.stem for table in TABLES}


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

    assert required == {
        "numpy",
        "psutil",
        "paho-mqtt",
        "safetensors",
        "zstandard",
        "msgspec",
        "click",
        "rich",
        "cryptography",
    }
