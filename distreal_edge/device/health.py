"""How a device fares, in the numbers that everybody may hear."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from distreal_edge.transport import DeviceHealth

if TYPE_CHECKING:
    from distreal_edge.device.board import Availability
    from distreal_edge.device.trainer import MiniBatch

__all__ = ["health_of"]


def health_of(
    time_s: float, availability: Availability, spool: int, latest: MiniBatch | None, *, training: bool
) -> DeviceHealth:
    """Return the message, whatever the numbers: what is beyond a field's limits is told as the limit.

    `latest` is the last mini-batch of the last round, None when there was none yet; `training` says whether that round
    is still being trained.
    """
    step = latest if training else None
    return DeviceHealth(
        time_s=_within(time_s, 1e11),
        cores=_within(availability.cores, 4096.0),
        memory_bytes=int(_within(availability.memory_bytes or 0.0, 2.0**50)),
        temperature_c=_temperature(availability.temperature_c),
        row=None if step is None else step.row,
        threads=0 if step is None else min(step.threads, 4096),
        images_per_s=0.0 if step is None or not step.seconds > 0.0 else _within(step.images / step.seconds, 1e9),
        spool=min(spool, 1_000_000),
        round=None if step is None else step.round,
        mini_batches=0 if latest is None else latest.mini_batch,
        loss=step.loss if step is not None and abs(step.loss) < 1e38 else None,
        vector_macs_share=None if step is None else _within(step.share, 1.0),
    )


def _temperature(degrees: float | None) -> float | None:
    return None if degrees is None or math.isnan(degrees) else min(max(degrees, -100.0), 300.0)


def _within(number: float, most: float) -> float:
    return 0.0 if math.isnan(number) else min(max(number, 0.0), most)
