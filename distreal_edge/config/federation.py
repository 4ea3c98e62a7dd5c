"""`federation.toml`: what the aggregator decides for everybody."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from distreal_edge.config.fields import Broker, Fraction, Identifier, Number, Positive, Section, Text, Whole

__all__ = ["CeilingStep", "Evaluation", "FederationConfig", "NetworkChoice", "Rounds", "TableChoice", "Training"]

_Numbers = Annotated[tuple[float, ...], msgspec.Meta(max_length=4096)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]


class NetworkChoice(Section, frozen=True):
    """The network: a `file`, or the name of one in the `zoo` with fresh weights from `seed`."""

    file: Text | None = None
    zoo: Text | None = None
    classes: Annotated[int, msgspec.Meta(ge=2, le=65536)] = 10
    in_channels: _Side = 3
    image_size: _Side = 32
    seed: Number = 0
    mean: _Numbers = ()
    std: _Numbers = ()
    crop_padding: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    horizontal_flip: bool = False


class TableChoice(Section, frozen=True):
    """The rows to choose from: a `file`, or rows of uniform rates, with residual streams kept or not."""

    file: Text | None = None
    rows: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    keep_streams: bool = True
    draw: Text = "ordered"


class Rounds(Section, frozen=True):
    """How many rounds, how long, and with whom.

    A round closes `seconds` after it was announced, or as soon as all selected devices have answered; devices stop
    training `upload_seconds` before. It starts once `least_devices` are there; `devices_per_round` None takes all.
    """

    number: Whole = 100
    seconds: Positive = 60.0
    upload_seconds: Positive = 5.0
    least_devices: Whole = 1
    devices_per_round: Whole | None = None
    seed: Number = 0


class Training(Section, frozen=True):
    """How devices train. `final_lr` lets the learning rate fall along a half cosine over the rounds.

    A device plans `epochs` over its images in a round, and goes on up to `most_epochs` when time is left over.
    """

    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    lr: Positive = 0.1
    final_lr: Positive | None = None
    momentum: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 5e-4
    epochs: Positive = 1.0
    most_epochs: Positive = 3.0
    average: Literal["touch", "fedavg"] = "touch"
    statistics_images: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 128


class CeilingStep(Section, frozen=True):
    """From this share of the rounds on (0 is the first round), this ceiling holds."""

    from_share: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
    ceiling: Fraction


class Evaluation(Section, frozen=True):
    """The aggregator's own images: the test split, and `calibration_images` of the training split.

    Batch-norm statistics are measured on the calibration images; with none of them, on the devices. `images` None
    evaluates the whole test split after every round.
    """

    name: Text | None = None
    root: Text | None = None
    images: Whole | None = None
    calibration_images: Number = 0
    seed: Number = 0


class FederationConfig(Section, frozen=True):
    """The whole file. `state` is the folder of models, updates and ledger."""

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
