"""Judge whether a device or an aggregator runs with a state folder, and is well."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.doctor.finding import Finding
from distreal_edge.errors import StateError
from distreal_edge.status import DeviceStatus, ask

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ProgramReading", "judge_program", "read_program"]

_STUCK_S: Final = 120.0
"""Averaging and evaluating may keep an aggregator busy for so long; a device's loop turns all the time."""


@dataclass(frozen=True, slots=True)
class ProgramReading:
    """Who holds a state folder: `answered` says what it does, `failure` why it was not heard.

    `held` without either: somebody holds the folder, and nobody answers there. `role` is `device` or `aggregator`.
    """

    folder: Path
    role: str
    held: bool = False
    process_id: int | None = None
    answered: str = ""
    age_s: float = 0.0
    safe_mode: bool = False
    failure: str = ""


def read_program(folder: Path, role: str) -> ProgramReading:
    """Ask at the folder's socket; only where nobody answers, see whether the folder's lock is held."""
    try:
        answer = ask(folder)
    except StateError as error:
        return ProgramReading(folder, role, failure=str(error))
    if answer is None:
        return ProgramReading(folder, role, held=_is_held(folder))
    told = answer.status
    who = "a device" if isinstance(told, DeviceStatus) else "an aggregator" if told is not None else "a program"
    safe_mode = isinstance(told, DeviceStatus) and told.safe_mode is not None
    doing = "starting" if told is None else told.doing
    return ProgramReading(
        folder,
        role,
        held=True,
        process_id=answer.process_id,
        answered=f"{who} (process {answer.process_id}): {doing}",
        age_s=answer.age_s,
        safe_mode=safe_mode,
    )


def judge_program(reading: ProgramReading) -> Finding:
    """Say who runs, and whether it is well; that nobody does is nothing to mend."""
    unit = f"distreal-edge-{reading.role}"
    restart = f"end it and start it again (as a service: sudo systemctl restart {unit})"
    if reading.failure:
        return Finding("program", reading.failure, f"look again with sudo; if it does not answer then, {restart}")
    if reading.answered:
        if reading.age_s > _STUCK_S:
            found = f"{reading.answered}; it has not got on for {reading.age_s:.0f} s"
            return Finding("program", found, f"{restart}; its log says what it did last: journalctl -u {unit}")
        if reading.safe_mode:
            return Finding("program", reading.answered, f"see what crashed it: journalctl -p warning -u {unit}")
        return Finding("program", reading.answered)
    if reading.held:
        found = f"{reading.folder} is held by a program that answers nobody"
        return Finding("program", found, f"it may be about to start or to end; if it stays so, {restart}")
    return Finding("program", f"none runs with {reading.folder}")


def _is_held(folder: Path) -> bool:
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
