"""What a configuration says of rounds and training, as the aggregator takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.aggregator import Lesson, RoundSettings

if TYPE_CHECKING:
    from distreal_edge.config.federation import Rounds, Training

__all__ = ["build_lesson", "build_rounds"]

_HOSTILE_SHARE = 0.2


def build_rounds(rounds: Rounds, *, seed: int, closing_measurement: bool = False) -> RoundSettings:
    """Return how many rounds, how long and with whom."""
    return RoundSettings(
        number=rounds.number,
        seconds=rounds.seconds,
        upload_seconds=rounds.upload_seconds,
        least_devices=rounds.least_devices,
        devices_per_round=rounds.devices_per_round,
        seed=seed,
        closing_measurement=closing_measurement,
        quorum=rounds.quorum,
        over_selection=rounds.over_selection,
    )


def build_lesson(training: Training, ceilings: tuple[tuple[float, float], ...]) -> Lesson:
    """Return how the federation trains, under ceilings `(from share of the rounds, ceiling)`."""
    return Lesson(
        batch=training.batch,
        lr=training.lr,
        final_lr=training.final_lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        epochs=training.epochs,
        most_epochs=training.most_epochs,
        statistics_images=training.statistics_images,
        average=training.average,
        hostile_share=_HOSTILE_SHARE if training.hostile_share is None else training.hostile_share,
        clip_norm=training.clip_norm,
        encoding=training.encoding,
        compression=training.compression,
        ceilings=ceilings,
    )
