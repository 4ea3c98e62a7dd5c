"""Whether an update may be counted. Everything here raises `ProtocolError` whose message starts with the reason."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.device import offsets_of, pieces_of
from distreal_edge.errors import ProtocolError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from distreal_edge.device import UpdateReader
    from distreal_edge.transport import Manifest

__all__ = ["REASONS", "check_late", "check_sender", "check_task", "check_update", "reason_of"]

REASONS: Final = {
    "chunk": "a chunk is damaged, or contradicts the others",
    "digest": "it does not hold what its digest was made of",
    "duplicate": "the device has answered this round already",
    "finite": "a tensor holds NaN or infinity or a negative variance, or would make the model infinite",
    "form": "it is not an update at all",
    "identity": "it says another device or uid than its topic",
    "late": "its round is closed",
    "model": "it was trained on another model",
    "round": "its round has not been opened",
    "samples": "it counts more images or MACs than this device can have trained, or counts that contradict each other",
    "selection": "the device was not selected",
    "shape": "its tensors are not the network's",
    "size": "it is larger than an update of this network can be",
    "type": "a tensor has another type than it must have, or the update another encoding than the round asks for",
    "untrained": "it changes what it says it did not train",
}
"""Every reason for a refusal, by the word that the refusal starts with and is counted under."""
_ELEMENTS: Final = 2**16


def reason_of(error: ProtocolError) -> str:
    """Return the reason that a refusal is counted under."""
    reason = str(error).partition(":")[0]
    return reason if reason in REASONS else "form"


def check_sender(
    device: str, *, manifest: Manifest | None, selected: Collection[str], answered: Collection[str]
) -> Manifest:
    """Refuse what cannot be counted whatever it holds, before any of it is kept; return the open round's manifest.

    `manifest` is the open round's, or None; `selected` are its devices, looked up for every message and therefore not
    as the manifest lists them; `answered` are the devices that have answered it.
    """
    if manifest is None:
        raise ProtocolError("late: no round is open")
    if device not in selected:
        raise ProtocolError(f"selection: {device} was not selected for round {manifest.number}")
    if device in answered:
        raise ProtocolError(f"duplicate: {device} has answered round {manifest.number} already")
    return manifest


def check_late(number: int, manifest: Manifest | None) -> None:
    """Refuse what was trained for a round before the open one, whoever sends it; late updates are never averaged."""
    if manifest is not None and number < manifest.number:
        raise ProtocolError(f"late: round {number} is closed")


def check_task(number: int, model: str, manifest: Manifest) -> None:
    """Refuse what was trained for another round than the open one, or on another model."""
    check_late(number, manifest)
    if number > manifest.number:
        raise ProtocolError(f"round: round {number} has not been opened")
    if model != manifest.model.digest:
        raise ProtocolError("model: the update was trained on another model")


def check_update(
    update: UpdateReader,
    *,
    manifest: Manifest,
    device: str,
    uid: str,
    announced_images: int,
    weights: Mapping[str, NDArray[np.float32]],
    full_macs: int,
) -> None:
    """Refuse an update, sound in itself, that is not for the open round, or more than this device can have trained.

    `manifest` is the open round's; `device` and `uid` are those of the topic that the update came on;
    `announced_images` is how many images the device said it holds when it was selected; `weights` are the model's
    tensors; `full_macs` is what a training step of the full network costs per image.
    """
    header = update.header
    if header.device != device or header.uid != uid:
        raise ProtocolError(f"identity: the update says {header.device}/{header.uid}, its topic {device}/{uid}")
    check_task(header.round, header.model, manifest)
    asked = manifest.training
    if (update.stated.encoding, update.stated.compression) != (asked.encoding, asked.compression):
        raise ProtocolError(
            f"type: the round asks for {asked.encoding} and {asked.compression}, "
            f"the update is {update.stated.encoding} and {update.stated.compression}"
        )
    most = most_images(manifest, announced_images)
    if header.images > most:
        raise ProtocolError(
            f"samples: {count_of(header.images, 'image')}, more than the {most} that this device can train"
        )
    if header.macs > header.images * full_macs:
        raise ProtocolError(
            f"samples: {count_of(header.macs, 'MAC')}, more than {count_of(header.images, 'image')} can cost"
        )
    if header.statistics_images > min(manifest.training.statistics_images, announced_images):
        raise ProtocolError("samples: statistics on more images than were asked for, or than the device holds")
    _check_sum(update, weights)


def _check_sum(update: UpdateReader, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Refuse changes that make the model infinite."""
    largest = max(float(np.abs(weights[name]).max()) for name in update.plan.parameters)
    if largest + update.largest < float(np.finfo(np.float32).max):
        return
    offsets = offsets_of(update.plan)
    for piece in pieces_of(update.plan, _ELEMENTS):
        changes = update.read(piece.begin, piece.end, np.empty(piece.end - piece.begin, dtype=np.float32))
        begin = piece.begin - offsets[piece.name][0]
        with np.errstate(over="ignore"):
            changes += weights[piece.name].reshape(-1)[begin : begin + len(changes)]
        if not np.isfinite(changes).all():
            raise ProtocolError(f"finite: the change of {piece.name} makes the model infinite")


def most_images(manifest: Manifest, announced_images: int) -> int:
    """Return on how many images a device that holds so many can train in a round at most."""
    if manifest.measure_only:
        return 0
    # A device rounds its mini-batches to whole ones, and takes at least one.
    return math.ceil(announced_images * manifest.training.most_epochs) + manifest.training.batch
