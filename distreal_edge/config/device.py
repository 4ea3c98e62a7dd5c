"""`device.toml`: what one board needs to know to take part."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from distreal_edge.config.fields import (
    Broker,
    Identifier,
    Positive,
    Section,
    Shard,
    Text,
    check_dataset,
    check_path,
)
from distreal_edge.device import OwnerLimits, QuietHours
from distreal_edge.errors import ConfigError

__all__ = ["DeviceConfig", "DeviceData", "Resources"]

_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]|24(?=:00)):([0-5]\d)", re.ASCII)
_MEMORY: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(MB|GB|MiB|GiB)", re.ASCII)
_UNITS: Final = {"MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30}


class DeviceData(Section, frozen=True):
    """The images this device trains on: a dataset by name, from `root` when it is not where it is looked for."""

    name: Text
    root: Text | None = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        """Check that there is such a dataset."""
        check_dataset(self.name, self.root)


class Resources(Section, frozen=True):
    """What the owner lends to training, and when.

    `most_cores` and `most_memory`, as `1.5 GiB`, cap what this program takes. Nothing is trained in `quiet_hours`, each
    like `22:00-07:00`, above `highest_temperature_c`, while `pause_file` exists, and on battery, unless `on_battery`
    says so. `trace`, a CSV file of `seconds,cores`, stands in for the real availability; a mini-batch then takes as
    long as on a board with that many cores, each `core_speed` times as fast as one here. `profile` is the file in which
    `distreal-edge profile` wrote what the federation's table takes on this board.
    """

    most_cores: Positive | None = None
    most_memory: Text | None = None
    quiet_hours: tuple[Text, ...] = ()
    highest_temperature_c: Annotated[float, msgspec.Meta(gt=0.0, le=150.0)] | None = None
    pause_file: Text | None = None
    # As whoever has a laptop expects of work in the background, and has it from other programs of this kind.
    on_battery: Literal["pause", "train"] = "pause"
    profile: Text | None = None
    trace: Text | None = None
    core_speed: Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)] = 1.0

    def __post_init__(self) -> None:
        """Check that texts can be read, and that what is free is said in one way only."""
        for key in ("pause_file", "profile", "trace"):
            check_path(key, getattr(self, key))
        self.limits()
        real = ("most_cores", "most_memory", "quiet_hours", "highest_temperature_c", "pause_file", "profile")
        for key in real if self.trace is not None else ():
            if getattr(self, key):
                raise ConfigError(f"{key}: leave it out beside trace, which says how many cores are free")

    def limits(self) -> OwnerLimits:
        """Return what the owner lends of this very machine; raise `ConfigError` when a text cannot be read."""
        return OwnerLimits(
            most_cores=self.most_cores,
            most_memory_bytes=None if self.most_memory is None else _bytes(self.most_memory),
            quiet_hours=tuple(_hours(text) for text in self.quiet_hours),
            highest_temperature_c=self.highest_temperature_c,
            pause_file=None if self.pause_file is None else Path(self.pause_file).expanduser(),
            train_on_battery=self.on_battery == "train",
        )


class DeviceConfig(Section, frozen=True):
    """The whole file. `state` is the folder of this device's spool; `log_steps` keeps a line per mini-batch there."""

    federation: Identifier
    device: Identifier
    state: Text
    data: DeviceData
    broker: Broker = Broker()
    resources: Resources = Resources()
    log_steps: bool = False

    def __post_init__(self) -> None:
        """Check that the state folder can be found."""
        check_path("state", self.state)


def _bytes(text: str) -> float:
    match = _MEMORY.fullmatch(text)
    size = 0.0 if match is None else float(match[1]) * _UNITS[match[2]]
    if size <= 0.0:
        raise ConfigError(f"most_memory: {text!r} is no amount; write a number and MB, GB, MiB or GiB, as '1.5 GiB'")
    return size


def _hours(text: str) -> QuietHours:
    match = _HOURS.fullmatch(text)
    if match is None:
        raise ConfigError(f"quiet_hours: {text!r} are no hours; write them as '22:00-07:00'")
    first, first_minute, last, last_minute = (int(part) for part in match.groups())
    hours = QuietHours(first * 60 + first_minute, last * 60 + last_minute)
    if hours.begin == hours.end:
        raise ConfigError(f"quiet_hours: {text!r} end when they begin; a whole day is '00:00-24:00'")
    return hours
