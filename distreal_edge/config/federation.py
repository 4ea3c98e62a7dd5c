"""`federation.toml`: what the aggregator decides for everybody."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from distreal_edge import zoo
from distreal_edge.aggregator import check_ceilings
from distreal_edge.config.fields import (
    Broker,
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
from distreal_edge.dropout import DRAW_POLICIES
from distreal_edge.errors import ConfigError
from distreal_edge.search import shipped_table

__all__ = [
    "CeilingStep",
    "Evaluation",
    "FederationConfig",
    "Keep",
    "NetworkChoice",
    "Rounds",
    "TableChoice",
    "Training",
]

_Rate = Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)]
_Epochs = Annotated[float, msgspec.Meta(gt=0.0, le=10_000.0)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Means = Annotated[tuple[Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)], ...], msgspec.Meta(max_length=4096)]
_Scales = Annotated[tuple[Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)], ...], msgspec.Meta(max_length=4096)]


# omit_defaults: written down, a file or a name stands alone, without defaults that it overrules.
class NetworkChoice(Section, frozen=True, omit_defaults=True):
    """The network: a `file`, or the name of one in the `zoo` with fresh weights from `seed`.

    `mean` and `std` normalise images in 0..1, one number for each of `in_channels`. In training an image is padded by
    `crop_padding` black pixels and cropped back at random, and flipped at random with `horizontal_flip`. A file says
    all of this itself.
    """

    file: Text | None = None
    zoo: Text | None = None
    classes: Annotated[int, msgspec.Meta(ge=2, le=65536)] = 10
    in_channels: _Side = 3
    image_size: _Side = 32
    seed: Number = 0
    mean: _Means = ()
    std: _Scales = ()
    crop_padding: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        """Check that it names one network, completely."""
        if self.zoo is None:
            if self.file is None:
                raise ConfigError("zoo: give the name of a network in the zoo, or the file of one")
            _check_alone(self, "file", "the network's file says that itself")
            check_path("file", self.file)
            return
        if self.file is not None:
            raise ConfigError("file: give either a file or a name in the zoo, not both")
        if self.zoo not in zoo.NETWORKS:
            guess = meant(self.zoo, zoo.NETWORKS)
            raise ConfigError(f"zoo: no network is called {self.zoo!r}; {guess}choose one of {', '.join(zoo.NETWORKS)}")
        if bool(self.mean) != bool(self.std):
            present, absent = ("mean", "std") if self.mean else ("std", "mean")
            raise ConfigError(f"{present}: normalising needs {absent} as well")
        for key, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in {0, self.in_channels}:
                raise ConfigError(f"{key}: give {self.in_channels} numbers, one per channel, not {len(numbers)}")


class TableChoice(Section, frozen=True, omit_defaults=True):
    """The rows to choose from: a `file`, the `name` of a table inside the package, or rows of uniform rates.

    Of those, `keep_streams` keeps the residual streams, and `draw` is the draw policy. A table says all of this itself.
    """

    file: Text | None = None
    name: Text | None = None
    rows: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    keep_streams: bool = True
    draw: Text = "ordered"

    def __post_init__(self) -> None:
        """Check that there are such a table and such a policy, and that nothing is said twice."""
        if self.file is not None and self.name is not None:
            raise ConfigError("name: give either a file or the name of a table of the package, not both")
        if self.file is not None:
            _check_alone(self, "file", "the table's file says that itself")
            check_path("file", self.file)
        if self.name is not None:
            _check_alone(self, "name", "the table says that itself")
            try:
                shipped_table(self.name)
            except ConfigError as error:
                raise ConfigError(f"name: {error}") from None
        if self.draw not in DRAW_POLICIES:
            guess = meant(self.draw, DRAW_POLICIES)
            raise ConfigError(
                f"draw: no policy is called {self.draw!r}; {guess}choose one of {', '.join(DRAW_POLICIES)}"
            )


class Rounds(Section, frozen=True):
    """How many rounds, how long, and with whom.

    A round closes `seconds` after it was announced, or as soon as enough devices have answered; devices stop training
    `upload_seconds` before. It starts once `least_devices` are there; `devices_per_round` None takes all. Enough is the
    share `quorum` of the devices selected, or of `devices_per_round`, of which `over_selection` times as many are
    selected.
    """

    number: Whole = 100
    seconds: Positive = 60.0
    upload_seconds: Positive = 5.0
    least_devices: Whole = 1
    devices_per_round: Whole | None = None
    quorum: Fraction = 1.0
    over_selection: Annotated[float, msgspec.Meta(ge=1.0, le=10.0)] = 1.0
    seed: Number = 0

    def __post_init__(self) -> None:
        """Check that devices have time to train."""
        if self.upload_seconds >= self.seconds:
            raise ConfigError(
                f"upload_seconds: {self.upload_seconds:g} leaves no time to train in rounds of {self.seconds:g} s"
            )
        if self.over_selection > 1.0 and self.devices_per_round is None:
            raise ConfigError("over_selection: needs devices_per_round as well, of which it takes more")


class Training(Section, frozen=True):
    """How devices train. `final_lr` lets the learning rate fall along a half cosine over the rounds.

    A device plans `epochs` over its images in a round, and goes on up to `most_epochs` when time is left over.
    `average` weights what devices changed by the images that touched it, or (`fedavg`) by all their images; the other
    kinds withstand a share of `hostile_share` hostile devices (0.2 when it is not given), by votes. `clip_norm` scales
    down updates with a larger norm than this, or than the median of the round. `encoding` and `compression` are how
    updates are written down. `statistics_images` is on how many images each device measures batch-norm statistics,
    unless the aggregator does.
    """

    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    lr: _Rate = 0.1
    final_lr: _Rate | None = None
    momentum: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 5e-4
    epochs: _Epochs = 1.0
    most_epochs: _Epochs = 3.0
    average: Literal["touch", "fedavg", "median", "trimmed_mean", "krum", "multi_krum"] = "touch"
    hostile_share: Annotated[float, msgspec.Meta(ge=0.0, lt=0.5)] | None = None
    clip_norm: Positive | Literal["median"] | None = None
    encoding: Literal["float32", "float16", "int8"] = "float32"
    compression: Literal["none", "zstd"] = "none"
    statistics_images: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 128

    def __post_init__(self) -> None:
        """Check that the limit is not below the aim, and that the average asks for a share."""
        if self.most_epochs < self.epochs:
            raise ConfigError(f"most_epochs: {self.most_epochs:g} is less than epochs, {self.epochs:g}")
        if self.hostile_share is not None and self.average not in {"trimmed_mean", "krum", "multi_krum"}:
            raise ConfigError(
                f"hostile_share: the average {self.average!r} does not ask for it; leave it out, "
                "or choose trimmed_mean, krum or multi_krum"
            )


class CeilingStep(Section, frozen=True):
    """From this share of the rounds on (0 is the first round), this ceiling holds."""

    from_share: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
    ceiling: Fraction


class Evaluation(Section, frozen=True):
    """The aggregator's own images: the test split, and `calibration_images` of the training split.

    Batch-norm statistics are measured on the calibration images, of which there are none or at least 2; with none, on
    the devices. `images` None evaluates the whole test split after every round. Devices that cut shards from the same
    dataset must hold back as many images, from the same `seed`.
    """

    name: Text | None = None
    root: Text | None = None
    images: Annotated[int, msgspec.Meta(ge=2, le=10**9)] | None = None
    calibration_images: Number = 0
    seed: Number = 0

    def __post_init__(self) -> None:
        """Check that there is a dataset to take images from."""
        if self.name is None:
            for key in ("root", "images", "calibration_images"):
                if getattr(self, key):
                    raise ConfigError(f"{key}: needs the dataset's name as well")
        else:
            check_dataset(self.name, self.root)
        if self.calibration_images == 1:
            raise ConfigError("calibration_images: one image has no statistics; give 0, or at least 2")


class Keep(Section, frozen=True):
    """Which models stay in the state folder: after the `newest_models` last rounds, and after every `every_model`-th.

    The newest one always stays; `every_model` 0 keeps none but the newest ones.
    """

    newest_models: Whole = 10
    every_model: Number = 10


class FederationConfig(Section, frozen=True):
    """The whole file. `state` is the folder of models, updates and ledger.

    Each `[[ceiling]]` is a step of the ceiling's schedule, the first from share 0 on.
    """

    federation: Identifier
    state: Text
    network: NetworkChoice
    broker: Broker = Broker()
    table: TableChoice = TableChoice()
    rounds: Rounds = Rounds()
    training: Training = Training()
    ceiling: Annotated[tuple[CeilingStep, ...], msgspec.Meta(min_length=1, max_length=64)] = (
        CeilingStep(from_share=0.0, ceiling=1.0),
    )
    evaluation: Evaluation = Evaluation()
    keep: Keep = Keep()

    def __post_init__(self) -> None:
        """Check the order of the ceilings, and that the state folder can be found."""
        check_path("state", self.state)
        check_ceilings([(step.from_share, step.ceiling) for step in self.ceiling])


def _check_alone(choice: NetworkChoice | TableChoice, key: str, why: str) -> None:
    for field in msgspec.structs.fields(choice):
        if field.name != key and getattr(choice, field.name) != field.default:
            raise ConfigError(f"{field.name}: leave it out beside {key}: {why}")
