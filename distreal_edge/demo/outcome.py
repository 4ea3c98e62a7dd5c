"""What the demo hands over at the end: `report.json`, two pictures, and a few sentences."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from distreal_edge.demo.folder import ACCURACY_PICTURE, CORES_PICTURE, PROGRAM, REPORT
from distreal_edge.durable import write_durably
from distreal_edge.observe import (
    TrainingReport,
    draw_accuracy,
    draw_cores_and_rows,
    encode_report,
    read_rounds,
    read_steps,
    summarise,
)
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from distreal_edge.demo.scenario import Scenario

__all__ = ["DemoReport", "Outcome", "machine", "sentences", "versions", "write_report"]

Outcome = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class DemoReport:
    """All of `report.json`. `docs/demo.md` explains it.

    `outcome` is `finished` when all rounds were run, whether or not the accuracy reached the target. `accuracy` is the
    final one, on `evaluated_images` test images.
    """

    program: str
    schema: int
    outcome: Outcome
    problem: str | None
    accuracy: float | None
    evaluated_images: int
    target_accuracy: float
    reached: bool
    started_s: float
    wall_s: float
    draw: str
    seed: int
    settings: dict[str, object]
    table_shares: tuple[float, ...]
    boards: dict[str, str]
    versions: dict[str, str | None]
    machine: dict[str, object]
    training: TrainingReport


def write_report(
    folder: Path,
    scenario: Scenario,
    *,
    outcome: Outcome,
    problem: str | None,
    final: tuple[float, int] | None,
    started_s: float,
    ended_s: float,
    table_shares: tuple[float, ...],
) -> DemoReport:
    """Compute the report from the logs in `folder`, and write it and the pictures there.

    `final` is the accuracy of the final network and on how many images; None where it was not measured again after the
    last round. Raises StateError when a log is damaged or the disk refuses.
    """
    rounds = read_rounds(folder / "state" / "aggregator" / "rounds.jsonl")
    steps = {name: read_steps(folder / "state" / name / "steps.csv") for name in scenario.names}
    training = summarise(rounds, steps)
    accuracy, images = final or (training.accuracy, training.evaluated_images)
    report = DemoReport(
        program=PROGRAM,
        schema=1,
        outcome=outcome,
        problem=problem,
        accuracy=accuracy,
        evaluated_images=images,
        target_accuracy=scenario.target_accuracy,
        reached=accuracy is not None and accuracy >= scenario.target_accuracy,
        started_s=started_s,
        wall_s=ended_s - started_s,
        draw=scenario.draw,
        seed=scenario.seed,
        settings=_settings(scenario),
        table_shares=table_shares,
        boards=scenario.stories,
        versions=versions(),
        machine=machine(),
        training=training,
    )
    if rounds:
        draw_accuracy(
            rounds,
            folder / ACCURACY_PICTURE,
            target=scenario.target_accuracy,
            final=final,
            title=f"{scenario.title}: accuracy over time",
        )
        draw_cores_and_rows(
            rounds,
            steps,
            folder / CORES_PICTURE,
            stories=scenario.stories,
            title=f"{scenario.title}: free cores, and the row chosen before every mini-batch",
        )
    write_durably(folder / REPORT, encode_report(report))
    return report


def sentences(report: DemoReport) -> tuple[str, ...]:
    """Say in a few sentences what the report shows."""
    evidence = report.training.evidence
    moves = evidence.adaptation
    lines = []
    if report.accuracy is not None:
        verdict = "reached" if report.reached else "missed"
        lines.append(
            f"Final accuracy {report.accuracy:.2%} on {report.evaluated_images:,} test images;"
            f" the target of {report.target_accuracy:.0%} was {verdict}."
        )
    if evidence.device_rounds:
        lines.append(
            f"Cores changed inside the round in {evidence.with_core_changes} of"
            f" {count_of(evidence.device_rounds, 'round')} of a device;"
            f" in {evidence.with_both_changes} of these the row changed too."
        )
        lines.append(
            f"Of {count_of(moves.core_changes, 'change')} of cores, the rows followed {moves.followed}, stayed at"
            f" {moves.unchanged} and went the other way at {moves.opposed}."
        )
        missing = ", ".join(f"{device} in round {number}" for device, number in evidence.unanswered)
        lines.append(
            "Every device returned an update in every round."
            if evidence.every_device_answered_every_round
            else f"No update came from {missing}."
        )
    return tuple(lines)


def versions() -> dict[str, str | None]:
    """Return the version of Python and of every package that took part; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("distreal-edge", "numpy", "torch", "paho-mqtt", "iotcore", "matplotlib", "rich"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, object]:
    """Return what this machine is: processor, cores that we may use, memory, system."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # x86 says "model name"; a Raspberry Pi says "Model" once at the end.
    for key in ("model name", "Model"):
        for line in lines:
            if line.partition(":")[0].strip() == key:
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _settings(scenario: Scenario) -> dict[str, object]:
    return {
        "data": scenario.data,
        "shards": f"dirichlet {scenario.alpha:g}",
        "network": {
            "digest": scenario.network.digest,
            "filters": [group.filters for group in scenario.network.groups],
            "weights": sum(math.prod(parameter.shape) for parameter in scenario.network.plan.parameters.values()),
            "macs": scenario.network.cost((0.0,) * len(scenario.network.groups)).macs,
        },
        "devices": scenario.devices,
        "rounds": scenario.rounds,
        "round_s": scenario.round_s,
        "core_speed": scenario.core_speed,
        "table": scenario.table,
        "training": scenario.training,
        "ceiling": scenario.ceiling,
        "calibration_images": scenario.calibration_images,
        "evaluated_images_per_round": scenario.evaluated_images,
    }
