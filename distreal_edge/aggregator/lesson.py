"""What the federation is taught, and the manifests that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distreal_edge.aggregator.averaging import AverageRule
from distreal_edge.aggregator.evaluation import trained_part
from distreal_edge.aggregator.schedule import ceiling_at, check_ceilings, learning_rate_at, widest_ceiling
from distreal_edge.errors import ConfigError
from distreal_edge.transport import Manifest, Training

if TYPE_CHECKING:
    from distreal_edge.aggregator.averaging import AverageKind, ClipNorm
    from distreal_edge.aggregator.evaluation import Part
    from distreal_edge.aggregator.rounds import Open, RoundSettings
    from distreal_edge.device import Compression, Encoding
    from distreal_edge.dropout import Table
    from distreal_edge.transport import BlobReference

__all__ = ["Lesson"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """How the federation trains: what `Training` of the manifest is made from, round by round.

    `ceilings` are steps `(from share of the rounds, ceiling)`; `final_lr` None keeps the learning rate constant.
    """

    batch: int
    lr: float
    final_lr: float | None
    momentum: float
    weight_decay: float
    epochs: float
    most_epochs: float
    statistics_images: int
    average: AverageKind
    ceilings: tuple[tuple[float, float], ...]
    hostile_share: float = 0.2
    clip_norm: ClipNorm | None = None
    encoding: Encoding = "float32"
    compression: Compression = "none"

    def __post_init__(self) -> None:
        """Check what has to fit together."""
        check_ceilings(self.ceilings)
        if self.most_epochs < self.epochs:
            raise ConfigError(f"most_epochs: {self.most_epochs:g} is less than epochs, {self.epochs:g}")

    @property
    def rule(self) -> AverageRule:
        """How its updates are averaged."""
        return AverageRule(self.average, self.hostile_share, self.clip_norm)

    def training(self, number: int, rounds: int, *, measured_here: bool) -> Training:
        """Return what devices are told for a round; they measure statistics unless the aggregator does."""
        return Training(
            batch=self.batch,
            lr=learning_rate_at(self.lr, self.final_lr, min(number, rounds), rounds),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            most_epochs=self.most_epochs,
            statistics_images=0 if measured_here else self.statistics_images,
            encoding=self.encoding,
            compression=self.compression,
        )

    def trained_part(self, table: Table, number: int, rounds: int) -> Part | None:
        """Return what has been trained of the network after so many rounds; None when that may be all of it."""
        return trained_part(table, widest_ceiling(self.ceilings, min(number, rounds), rounds))

    def manifest(
        self,
        opened: Open,
        settings: RoundSettings,
        *,
        model: BlobReference,
        table: BlobReference,
        draw: str,
        measured_here: bool,
    ) -> Manifest:
        """Return the manifest that announces a round."""
        return Manifest(
            number=opened.number,
            model=model,
            table=table,
            ceiling=ceiling_at(self.ceilings, min(opened.number, settings.number), settings.number),
            deadline_s=opened.deadline_s,
            train_until_s=opened.train_until_s,
            selected=opened.selected,
            seed=settings.seed,
            draw=draw,
            training=self.training(opened.number, settings.number, measured_here=measured_here),
            measure_only=opened.measure_only,
        )

    def last_manifest(
        self, settings: RoundSettings, *, model: BlobReference, table: BlobReference, draw: str, now_s: float
    ) -> Manifest:
        """Return the manifest that says that the training is over and that `model` is its result."""
        return Manifest(
            number=settings.last,
            model=model,
            table=table,
            ceiling=1.0,
            deadline_s=now_s,
            train_until_s=now_s,
            selected=(),
            seed=settings.seed,
            draw=draw,
            training=self.training(settings.last, settings.number, measured_here=True),
            finished=True,
        )
