"""A scenario: which devices, with which images, resources and links, train what; one TOML file."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from distreal_edge import config
from distreal_edge.aggregator import check_ceilings
from distreal_edge.config import CeilingStep, NetworkChoice, TableChoice  # noqa: TC001 - msgspec reads the annotations
from distreal_edge.config.fields import (
    Fraction,
    Identifier,
    Number,
    Positive,
    Section,
    Text,
    Whole,
    check_dataset,
    check_path,
    meant,
)
from distreal_edge.errors import ConfigError
from distreal_edge.simulate.rivals import RIVALS

__all__ = ["Asynchronous", "Availability", "Data", "Devices", "Link", "Rounds", "Scenario", "Training"]

_Share = Annotated[float, msgspec.Meta(ge=0.0, le=64.0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]


class Data(Section, frozen=True):
    """The dataset, how its training split is cut into shards, and what the aggregator has of it.

    `calibration_images` of the training split are the aggregator's, the rest is cut; `images` takes only so many of the
    training split. Models are scored on the first `test_images` of the test split.
    """

    name: Text
    root: Text | None = None
    kind: Literal["iid", "dirichlet", "writer"] = "iid"
    alpha: Annotated[float, msgspec.Meta(gt=0.0, le=1e6)] = 0.5
    smallest: Annotated[int, msgspec.Meta(ge=2, le=10**6)] = 8
    images: Whole | None = None
    test_images: Annotated[int, msgspec.Meta(ge=2, le=10**9)] = 2000
    calibration_images: Annotated[int, msgspec.Meta(ge=2, le=10**6)] = 512

    def __post_init__(self) -> None:
        """Check that there is such a dataset."""
        check_dataset(self.name, self.root)


class Devices(Section, frozen=True):
    """How many devices, and how fast each of their cores is.

    Without `macs_per_s` a device is as fast as its images ask for: one core, free all the time, just trains the full
    network on what it plans in a round. Availability is then a share of what the full network needs. `overhead` is
    what a mini-batch takes whatever it trains, as a share of a full one.
    """

    number: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    macs_per_s: Annotated[float, msgspec.Meta(gt=0.0, le=1e15)] | None = None
    overhead: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.04


class Availability(Section, frozen=True):
    """How many cores devices have free, over time.

    `constant`: device number i has `shares[i mod n]` for ever. `redraw`: uniform in `least`..`most`, drawn anew every
    `every_s` seconds. `markov`: `most` cores for `on_s` seconds in the mean, then `least` for `off_s`, both
    exponential. `diurnal`: from `least` to `most` and back once a day of `day_s` seconds, each device in its own time
    zone, with noise drawn anew every `every_s`. `recorded`: traces from the `traces` folder (`distreal-edge record`
    makes them), devices take turns and start at different places. `every_s` is a round's length when it is not given.
    """

    kind: Literal["constant", "redraw", "markov", "diurnal", "recorded"] = "constant"
    shares: Annotated[tuple[_Share, ...], msgspec.Meta(min_length=1, max_length=10_000)] = (1.0, 0.5, 0.25)
    least: _Share = 0.05
    most: _Share = 1.0
    every_s: Positive | None = None
    on_s: Positive = 30.0
    off_s: Positive = 30.0
    day_s: Positive = 86400.0
    traces: Text | None = None

    def __post_init__(self) -> None:
        """Check that the kind has what it needs."""
        if self.least > self.most:
            raise ConfigError(f"least: {self.least:g} is more than most, {self.most:g}")
        if self.kind == "recorded" and self.traces is None:
            raise ConfigError("kind: recorded needs traces as well, the folder of their CSV files")
        check_path("traces", self.traces)

    @property
    def weakest(self) -> float:
        """The least that a device has: what a network for all must be content with. For recorded traces, `least`."""
        return min(self.shares) if self.kind == "constant" else self.least


class Link(Section, frozen=True):
    """Each device's way to the aggregator: its line's speeds, and the time a message takes."""

    download_mbit_per_s: Positive = 16.0
    upload_mbit_per_s: Positive = 4.0
    latency_s: _Seconds = 0.05


class Rounds(config.Rounds, frozen=True):
    """Those of a federation, with ten devices a round; `seed` is the scenario's."""

    upload_seconds: Positive = 6.0
    devices_per_round: Whole | None = 10


class Training(config.Training, frozen=True):
    """That of a federation; how updates are averaged, and how time left over is used, is the strategies' business."""

    lr: Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)] = 0.05


class Asynchronous(Section, frozen=True):
    """No rounds, but FedBuff: `concurrency` devices train at a time, and each `buffer` updates make a new model."""

    buffer: Whole = 10
    concurrency: Whole = 10


class Scenario(Section, frozen=True):
    """The whole file.

    `strategies` are names of `distreal_edge.simulate.rivals`, all of them when none is given. `ceiling` and `table` are
    those of the strategies `ours`: without a table they take one of the package that fits, or uniform rates with
    streams kept; `ours-adaptive` goes from ceiling to ceiling by the progress that training makes. `small` is the share
    of the MACs of a small network for all; without it what the weakest device can train. Models are scored after every
    `evaluate_every` rounds and after the last. `aggregator_s` passes between rounds. With an `asynchronous` section
    there are no rounds, for all strategies; `rounds` then says how long it all takes, and how long devices train that
    pace themselves.
    """

    name: Identifier
    network: NetworkChoice
    data: Data
    devices: Devices = Devices()
    availability: Availability = Availability()
    link: Link = Link()
    rounds: Rounds = Rounds()
    training: Training = Training()
    table: TableChoice | None = None
    ceiling: Annotated[tuple[CeilingStep, ...], msgspec.Meta(min_length=1, max_length=64)] | None = None
    asynchronous: Asynchronous | None = None
    strategies: tuple[Text, ...] = ()
    small: Fraction | None = None
    evaluate_every: Whole = 5
    aggregator_s: _Seconds = 1.0
    seed: Number = 0

    def __post_init__(self) -> None:
        """Check the order of the ceilings, that strategies are known, and that nothing is said that they decide."""
        if self.ceiling is not None:
            check_ceilings([(step.from_share, step.ceiling) for step in self.ceiling])
        for name in self.strategies:
            if name not in RIVALS:
                guess = meant(name, RIVALS)
                raise ConfigError(
                    f"strategies: no strategy is called {name!r}; {guess}choose among {', '.join(RIVALS)}"
                )
        if self.training.average != "touch" or self.training.hostile_share is not None:
            raise ConfigError("training: leave out average and hostile_share; each strategy says how it averages")
        if self.rounds.seed:
            raise ConfigError("rounds: leave out its seed; the one at the top of the file is for everything")

    @property
    def length_s(self) -> float:
        """Virtual time that the rounds take when each lasts until its deadline."""
        return self.rounds.number * (self.rounds.seconds + self.aggregator_s)

    @property
    def last_s(self) -> float:
        """When a federation ends whose rounds wait for devices: twice as long after its beginning."""
        return 2.0 * self.length_s
