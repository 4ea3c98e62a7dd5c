"""The units, read by systemd itself and compared with the command line that they start."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distreal_edge.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
SLICE = FOLDER / "distreal.slice"
PROGRAM = "/opt/distreal-edge/bin/distreal-edge"


def parsed(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)  # some keys may be said more than once
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text(encoding="utf-8"))
    return parser


def test_there_is_a_unit_for_each_role() -> None:
    assert [unit.name for unit in UNITS] == ["distreal-edge-aggregator.service", "distreal-edge-device.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_a_verb_that_exists_with_options_that_it_has(unit: Path) -> None:
    program, verb, *arguments = shlex.split(parsed(unit)["Service"]["ExecStart"])

    result = subprocess.run(
        [sys.executable, "-m", "distreal_edge", verb, "--help"], capture_output=True, text=True, timeout=60, check=False
    )

    assert program == PROGRAM
    assert result.returncode == 0, result.stderr
    assert all(argument in result.stdout for argument in arguments if argument.startswith("-"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_configuration_error_stops_the_service_for_good(unit: Path) -> None:
    assert parsed(unit)["Service"]["RestartPreventExitStatus"] == str(ConfigError.exit_code)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_fault_that_is_not_ours_to_mend_never_stops_a_service_for_good(unit: Path) -> None:
    service = parsed(unit)
    assert service["Service"]["Restart"] == "on-failure"
    assert service["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["Service"]["TimeoutStartSec"] == "infinity"


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    # systemd looks whether the program is there, and in a checkout nothing lies in /opt.
    copies = [tmp_path / unit.name for unit in [*UNITS, SLICE]]
    for copy in copies:
        text = (FOLDER / copy.name).read_text(encoding="utf-8")
        copy.write_text(text.replace(PROGRAM, "/bin/true"), encoding="utf-8")

    result = analyze("verify", "--man=no", "--recursive-errors=no", *copies)

    # It returns 0 even for unknown keys: only its words count.
    assert result.stderr == ""
    assert result.returncode == 0


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_a_service_hardly_exposed(unit: Path) -> None:
    result = analyze("security", "--offline=true", "--threshold=15", "--no-pager", unit)

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_readme_says_how_exposed_a_service_is() -> None:
    result = analyze("security", "--offline=true", "--no-pager", UNITS[1])

    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)
    assert f"says {exposure} on a scale" in (FOLDER / "README.md").read_text(encoding="utf-8")
