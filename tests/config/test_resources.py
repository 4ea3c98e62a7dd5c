"""What the owner writes below `[resources]`, and what the monitor is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.config import DeviceConfig, Resources, load_config
from distreal_edge.device import OwnerLimits, QuietHours
from distreal_edge.errors import ConfigError

DEVICE = 'federation = "farm"\ndevice = "pi-1"\nstate = "state"\n[data]\nname = "mnist"\n[resources]\n'


def resources(text: str, folder: Path) -> Resources:
    path = folder / "device.toml"
    path.write_text(DEVICE + text, encoding="utf-8")
    return load_config(path, DeviceConfig).resources


def test_a_file_without_limits_lends_everything_but_the_battery(tmp_path: Path) -> None:
    assert resources("", tmp_path).limits() == OwnerLimits()
    assert not OwnerLimits().train_on_battery


def test_every_limit_reaches_the_monitor(tmp_path: Path) -> None:
    text = """
most_cores = 2
most_memory = "1.5 GiB"
quiet_hours = ["22:00-07:00", "12:00-13:30"]
highest_temperature_c = 75
pause_file = "/run/pause"
on_battery = "train"
"""
    assert resources(text, tmp_path).limits() == OwnerLimits(
        most_cores=2.0,
        most_memory_bytes=1.5 * 2**30,
        quiet_hours=(QuietHours(1320, 420), QuietHours(720, 810)),
        highest_temperature_c=75.0,
        pause_file=Path("/run/pause"),
        train_on_battery=True,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("512 MB", 512e6), ("2GB", 2e9), ("256 MiB", 2.0**28), ("0.5 GiB", 2.0**29), ("1.25 MB", 1.25e6)],
)
def test_memory_is_written_with_its_unit(text: str, size: float) -> None:
    assert Resources(most_memory=text).limits().most_memory_bytes == size


def test_a_file_in_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert Resources(pause_file="~/pause").limits().pause_file == Path("/home/ada/pause")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('most_memory = "1.5"\n', 7, "most_memory: '1.5' is no amount; write a number and MB, GB, MiB or GiB, as "),
        ('most_memory = "1.5 gigabytes"\n', 7, "most_memory: '1.5 gigabytes' is no amount"),
        ('most_memory = "0 MB"\n', 7, "most_memory: '0 MB' is no amount"),
        ('most_memory = "-1 MB"\n', 7, "most_memory: '-1 MB' is no amount"),
        ("most_memory = 1.5\n", 7, "most_memory: expected text, got a real number; put it in quotes"),
        ('most_cores = 1\nquiet_hours = ["22:00-07:00", "7-8"]\n', 8, "quiet_hours: '7-8' are no hours; write them as"),
        ('quiet_hours = ["22:00-24:01"]\n', 7, "quiet_hours: '22:00-24:01' are no hours"),
        ('quiet_hours = ["24:00-07:00"]\n', 7, "quiet_hours: '24:00-07:00' are no hours"),
        ('quiet_hours = ["22:60-07:00"]\n', 7, "quiet_hours: '22:60-07:00' are no hours"),
        ('quiet_hours = ["07:00-07:00"]\n', 7, "quiet_hours: '07:00-07:00' end when they begin; a whole day is "),
        ('quiet_hours = "22:00-07:00"\n', 7, "quiet_hours: expected a list, got text; write "),
        ("highest_temperature_c = 0\n", 7, "highest_temperature_c: expected a number above 0, got 0"),
        ("highest_temperature_c = 200\n", 7, "highest_temperature_c: expected a number of at most 150, got 200"),
        ("highest_temperature_c = nan\n", 7, "highest_temperature_c: expected a number above 0, got nan"),
        (
            'pause_file = "~nobody-of-this-name/pause"\n',
            7,
            "is in a home folder that is not known; write the whole path",
        ),
        ('on_battery = "stop"\n', 7, 'on_battery: "stop" is not known; choose one of pause, train'),
        ("most_memroy = '1 GB'\n", 7, "unknown key resources.most_memroy; did you mean 'most_memory'?"),
        ('trace = "a.csv"\nmost_memory = "1 GB"\n', 8, "most_memory: leave it out beside trace"),
        ('trace = "a.csv"\nquiet_hours = ["22:00-07:00"]\n', 8, "quiet_hours: leave it out beside trace"),
        ('trace = "a.csv"\nhighest_temperature_c = 70\n', 8, "highest_temperature_c: leave it out beside trace"),
        ('trace = "a.csv"\npause_file = "p"\n', 8, "pause_file: leave it out beside trace"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, line: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resources(text, tmp_path)
    complaint = str(caught.value).removeprefix(f"{tmp_path}/")
    assert complaint.startswith(f"device.toml:{line}: ")
    assert said in complaint


@settings(deadline=None)
@given(text=st.text(max_size=14))
def test_any_text_is_hours_or_a_mistake(text: str) -> None:
    try:
        (hours,) = Resources(quiet_hours=(text,)).limits().quiet_hours
    except ConfigError:
        return
    assert str(hours) == text


@settings(deadline=None)
@given(begin=st.integers(0, 1439), end=st.integers(0, 1440))
def test_hours_are_read_as_they_are_written(begin: int, end: int) -> None:
    if begin == end:
        return
    hours = QuietHours(begin, end)
    assert Resources(quiet_hours=(str(hours),)).limits().quiet_hours == (hours,)
