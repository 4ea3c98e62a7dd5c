"""The report of one training: what happened in every round and on every device, computed from the logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from distreal_edge.observe.adaptation import Adaptation, DeviceRound, add_up, device_round

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from distreal_edge.observe.records import RoundRecord, Steps

__all__ = ["DeviceSummary", "Evidence", "RoundSummary", "TrainingReport", "encode_report", "summarise"]


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One closed round. Times are seconds after the first round was announced.

    `mean_share` is the share of the full network's MACs that was trained, on average over the devices' images; None
    when no device kept a log. `least_cores` and `most_cores` span all devices.
    """

    round: int
    ceiling: float
    started_after_s: float
    closed_after_s: float
    accuracy: float | None
    loss: float | None
    evaluated_images: int
    images: int
    mini_batches: int
    mean_share: float | None
    least_cores: float | None
    most_cores: float | None
    selected: tuple[str, ...]
    answered: tuple[str, ...]
    devices: tuple[DeviceRound, ...]


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """One device over all closed rounds. `mean_cores` is an average over mini-batches' seconds."""

    device: str
    rounds_selected: int
    rounds_answered: int
    mini_batches: int
    images: int
    mean_share: float | None
    least_cores: float | None
    mean_cores: float | None
    most_cores: float | None
    adaptation: Adaptation


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the logs show about adapting inside rounds.

    Counted over every pair of a device and a closed round in which it was selected. `with_core_changes` of these pairs
    saw cores change inside the round, and `with_both_changes` of those saw the row change as well. `unanswered` names
    the pairs without a counted update.
    """

    device_rounds: int
    with_core_changes: int
    with_both_changes: int
    adaptation: Adaptation
    every_device_answered_every_round: bool
    unanswered: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """The whole training. `accuracy` is that of the full network after the last closed round; None without one."""

    accuracy: float | None
    evaluated_images: int
    images: int
    rounds: tuple[RoundSummary, ...]
    devices: tuple[DeviceSummary, ...]
    evidence: Evidence


def summarise(rounds: Sequence[RoundRecord], steps: Mapping[str, Steps]) -> TrainingReport:
    """Compute the report from the aggregator's records and the mini-batches of each device, by name.

    Only closed rounds count: what devices trained in a round that was cut short is left out.
    """
    began_s = rounds[0].started_s if rounds else 0.0
    summaries = tuple(_round_summary(record, steps, began_s) for record in rounds)
    pairs = [(device, summary.round) for summary in summaries for device in summary.devices]
    unanswered = tuple((device.device, number) for device, number in pairs if not device.answered)
    moved = [device for device, _ in pairs if device.distinct_cores > 1]
    return TrainingReport(
        accuracy=rounds[-1].accuracy if rounds else None,
        evaluated_images=rounds[-1].evaluated_images if rounds else 0,
        images=sum(record.images for record in rounds),
        rounds=summaries,
        devices=tuple(_device_summary(name, steps[name], summaries) for name in sorted(steps)),
        evidence=Evidence(
            device_rounds=len(pairs),
            with_core_changes=len(moved),
            with_both_changes=sum(device.distinct_rows > 1 for device in moved),
            adaptation=add_up(device.adaptation for device, _ in pairs),
            every_device_answered_every_round=bool(pairs) and not unanswered,
            unanswered=unanswered,
        ),
    )


def encode_report(report: object) -> bytes:
    """Return a report, or whatever holds one, as JSON that people can read too."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def _round_summary(record: RoundRecord, steps: Mapping[str, Steps], began_s: float) -> RoundSummary:
    devices = tuple(
        device_round(name, steps[name].of_round(record.round), answered=name in record.answered)
        for name in sorted(record.selected)
        if name in steps
    )
    return RoundSummary(
        round=record.round,
        ceiling=record.ceiling,
        started_after_s=record.started_s - began_s,
        closed_after_s=record.closed_s - began_s,
        accuracy=record.accuracy,
        loss=record.loss,
        evaluated_images=record.evaluated_images,
        images=record.images,
        mini_batches=record.mini_batches,
        mean_share=_mean_share(devices),
        least_cores=min((device.least_cores for device in devices if device.least_cores is not None), default=None),
        most_cores=max((device.most_cores for device in devices if device.most_cores is not None), default=None),
        selected=record.selected,
        answered=record.answered,
        devices=devices,
    )


def _device_summary(name: str, steps: Steps, rounds: Sequence[RoundSummary]) -> DeviceSummary:
    own = [device for summary in rounds for device in summary.devices if device.device == name]
    closed = [steps.of_round(summary.round) for summary in rounds]
    seconds = sum(float(part.seconds.sum()) for part in closed)
    return DeviceSummary(
        device=name,
        rounds_selected=len(own),
        rounds_answered=sum(device.answered for device in own),
        mini_batches=sum(device.mini_batches for device in own),
        images=sum(device.images for device in own),
        mean_share=_mean_share(own),
        least_cores=min((device.least_cores for device in own if device.least_cores is not None), default=None),
        mean_cores=sum(float(part.cores @ part.seconds) for part in closed) / seconds if seconds else None,
        most_cores=max((device.most_cores for device in own if device.most_cores is not None), default=None),
        adaptation=add_up(device.adaptation for device in own),
    )


def _mean_share(devices: Sequence[DeviceRound]) -> float | None:
    images = sum(device.images for device in devices)
    if not images:
        return None
    return sum((device.mean_share or 0.0) * device.images for device in devices) / images
