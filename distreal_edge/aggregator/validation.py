"""Whether an update may be counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from distreal_edge.errors import ProtocolError

if TYPE_CHECKING:
    from distreal_edge.device import Update
    from distreal_edge.transport import Manifest

__all__ = ["check_update"]


def check_update(
    update: Update, *, manifest: Manifest | None, device: str, uid: str, announced_images: int | None
) -> None:
    """Raise `ProtocolError`, whose message starts with the reason's key, unless the update is for the open round.

    `manifest` is the open round's, or None; `device` and `uid` are those of the topic that the update came on;
    `announced_images` is how many images the device says it holds.
    """
    header = update.header
    if header.device != device or header.uid != uid:
        raise ProtocolError(f"identity: the update says {header.device}/{header.uid}, its topic {device}/{uid}")
    if manifest is None or header.round != manifest.number:
        raise ProtocolError(f"late: round {header.round} is closed")
    if device not in manifest.selected:
        raise ProtocolError(f"selection: {device} was not selected for round {manifest.number}")
    if header.model != manifest.model.digest:
        raise ProtocolError("model: the update was trained on another model")
    training = manifest.training
    most = 0
    if not manifest.measure_only and announced_images is not None:
        # A device rounds its mini-batches to whole ones, and takes at least one.
        most = math.ceil(announced_images * training.most_epochs) + training.batch
    if announced_images is not None and header.images > most:
        raise ProtocolError(f"samples: {header.images} images are more than the {most} that this device can train")
    if header.statistics_images > max(training.statistics_images, 0):
        raise ProtocolError("samples: statistics on more images than were asked for")
