"""What docs/device.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distreal_edge.config import DeviceConfig, load_config
from distreal_edge.device import Trace

PAGE = (Path(__file__).parents[2] / "docs" / "device.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    text: str = found
    return text


def test_the_example_configuration_is_one(tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text(example("toml"))
    config = load_config(file, DeviceConfig)
    assert (config.federation, config.device, config.resources.most_cores) == ("garden", "pi-1", 2.0)


def test_the_settings_that_are_commented_out_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text(re.sub(r"^# (\w+ =)", r"\1", example("toml"), flags=re.MULTILINE).replace("most_cores", "# most"))
    config = load_config(file, DeviceConfig)
    assert (config.resources.trace, config.resources.core_speed, config.data.root) == ("trace.csv", 0.1, "/srv/images")


def test_the_example_trace_is_one(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(example("csv"))
    assert Trace.load(file).at(21.0) == 0.0
    assert Trace.load(file).finish(19.0, 2.0) == pytest.approx(22.4)
