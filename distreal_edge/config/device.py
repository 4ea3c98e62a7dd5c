"""`device.toml`: what one board needs to know to take part."""

from __future__ import annotations

from typing import Annotated

import msgspec

from distreal_edge.config.fields import Broker, Identifier, Positive, Section, Shard, Text
from distreal_edge.errors import ConfigError

__all__ = ["DeviceConfig", "DeviceData", "Resources"]


class DeviceData(Section, frozen=True):
    """The images this device trains on: a dataset by name, from `root` when it is not where it is looked for."""

    name: Text
    root: Text | None = None
    shard: Shard | None = None


class Resources(Section, frozen=True):
    """What the owner lends to training.

    `most_cores` caps the cores. `trace`, a CSV file of `seconds,cores`, stands in for the real availability; a
    mini-batch then takes as long as on a board with that many cores, each `core_speed` times as fast as one here.
    """

    most_cores: Positive | None = None
    trace: Text | None = None
    core_speed: Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)] = 1.0

    def __post_init__(self) -> None:
        """Check that cores are said in one way only."""
        if self.most_cores is not None and self.trace is not None:
            raise ConfigError("most_cores: leave it out beside trace, which says how many cores are free")


class DeviceConfig(Section, frozen=True):
    """The whole file. `state` is the folder of this device's spool; `log_steps` keeps a line per mini-batch there."""

    federation: Identifier
    device: Identifier
    state: Text
    data: DeviceData
    broker: Broker = Broker()
    resources: Resources = Resources()
    log_steps: bool = False
