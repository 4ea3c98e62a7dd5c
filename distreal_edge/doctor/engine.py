"""Judge whether this processor can train, and with which kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from distreal_edge.doctor.child import ChildFailure, run_child
from distreal_edge.doctor.finding import Finding

__all__ = ["EngineReading", "judge_engine", "read_engine"]

_PATIENCE_S: Final = 60.0
_AGREEMENT: Final = 1e-3


@dataclass(frozen=True, slots=True)
class EngineReading:
    """A tiny training on the kernels that are chosen here, and on plain code: the losses of its steps.

    `failure` says how it ended when there was no result.
    """

    processor: str
    instruction_set: str = ""
    losses: tuple[float, ...] = ()
    plain_losses: tuple[float, ...] = ()
    failure: str = ""


def read_engine(processor: str) -> EngineReading:
    """Train in a process of its own: an instruction that this processor lacks would end it."""
    try:
        answer = run_child("distreal_edge.doctor.trial", timeout_s=_PATIENCE_S)
    except ChildFailure as failure:
        return EngineReading(processor, failure=str(failure))
    if "failure" in answer:
        return EngineReading(processor, failure=str(answer["failure"]))
    return EngineReading(processor, answer["instruction_set"], tuple(answer["losses"]), tuple(answer["plain_losses"]))


def judge_engine(reading: EngineReading) -> Finding:
    """Say whether training works, and gives what plain code gives."""
    if "DISTREAL_EDGE_INSTRUCTION_SET=" in reading.failure:
        return Finding("engine", reading.failure, "unset DISTREAL_EDGE_INSTRUCTION_SET, and the best one is chosen")
    if reading.failure:
        return Finding(
            "engine",
            f"{reading.processor}: a training step failed: {reading.failure}",
            "install the program anew on this very machine (pip install --force-reinstall .); "
            "DISTREAL_EDGE_INSTRUCTION_SET=plain helps until then",
        )
    agree = [
        math.isclose(one, other, rel_tol=_AGREEMENT, abs_tol=_AGREEMENT)
        for one, other in zip(reading.losses, reading.plain_losses, strict=True)
    ]
    if not agree or not all(agree):
        return Finding(
            "engine",
            f"{reading.processor}: {reading.instruction_set} kernels give losses {_shown(reading.losses)}, "
            f"plain code {_shown(reading.plain_losses)}",
            "check the memory (sudo apt-get install memtester; sudo memtester 100M 1) and undo overclocking; "
            "DISTREAL_EDGE_INSTRUCTION_SET=plain helps until then",
        )
    return Finding("engine", f"{reading.processor}: {reading.instruction_set} kernels train, as plain code does")


def _shown(losses: tuple[float, ...]) -> str:
    return ", ".join(f"{loss:.4g}" for loss in losses)
