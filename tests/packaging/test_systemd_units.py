"""The units, read by systemd itself and compared with the command line that they start."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distreal_edge.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
PROGRAM = "/opt/distreal-edge/bin/distreal-edge"


def parsed(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_has_nothing_to_say_about_a_unit(unit: Path, tmp_path: Path) -> None:
    # systemd looks whether the program is there, and in a checkout nothing lies in /opt.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"), encoding="utf-8")

    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copy],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    # It returns 0 even for unknown keys: only its words count.
    assert result.stderr == ""
    assert result.returncode == 0
