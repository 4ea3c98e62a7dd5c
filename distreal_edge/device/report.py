"""What a device tells its owner of itself, beside what it tells everybody as health."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.status import DeviceStatus, UpdateAnswer

if TYPE_CHECKING:
    from distreal_edge.device.board import Availability
    from distreal_edge.transport import Ack, DeviceHealth

__all__ = ["status_of", "update_answer"]


def status_of(
    availability: Availability,
    health: DeviceHealth,
    *,
    federation: str,
    device: str,
    state: str,
    doing: str,
    connected: bool,
    images: int,
    announced: int | None,
    last_answer: UpdateAnswer | None,
    safe_mode: str | None,
) -> DeviceStatus:
    """Return the status, whose numbers are those of the health that is published at the same time."""
    training = health.round is not None
    return DeviceStatus(
        federation=federation,
        device=device,
        state=state,
        doing=doing,
        connected=connected,
        images=images,
        round=announced,
        cores=health.cores,
        memory_bytes=None if availability.memory_bytes is None else health.memory_bytes,
        temperature_c=health.temperature_c,
        throttled=availability.throttled,
        on_battery=availability.on_battery,
        paused=availability.paused,
        row=health.row,
        threads=health.threads if training else None,
        macs_share=health.vector_macs_share,
        images_per_s=health.images_per_s if training else None,
        loss=health.loss,
        mini_batches=health.mini_batches,
        spool=health.spool,
        last_answer=last_answer,
        safe_mode=safe_mode,
    )


def update_answer(ack: Ack, time_s: float) -> UpdateAnswer:
    """Return what the aggregator has just said of an update."""
    return UpdateAnswer(ack.uid, ack.kind, ack.reason, time_s)
