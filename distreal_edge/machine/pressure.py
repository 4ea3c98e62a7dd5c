"""Waiting for a CPU: by anybody on this machine, and by this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.machine.files import names_in, read_text, whole

if TYPE_CHECKING:
    from distreal_edge.machine.files import Roots

__all__ = ["read_own_waits", "read_waited_seconds"]


def read_waited_seconds(roots: Roots) -> float | None:
    """Return for how long so far somebody waited for a CPU (the `some` of PSI); None when Linux does not say.

    Linux averages it over the CPUs, those that are busy counting more. A Raspberry Pi tells it only when booted with
    `psi=1`.
    """
    for line in (read_text(f"{roots.proc}/pressure/cpu") or "").splitlines():
        fields = line.split()
        if fields[:1] == ["some"]:
            total = next((field for field in fields if field.startswith("total=")), "")
            waited_us = whole(total.removeprefix("total="))
            return None if waited_us is None else waited_us / 1e6
    return None


def read_own_waits(roots: Roots) -> dict[int, float]:
    """Return for how many seconds each thread of this process has waited for a CPU, by the thread's number.

    Threads that have ended are gone from it, with what they waited.
    """
    tasks = f"{roots.proc}/self/task"
    waits = {}
    for name in names_in(tasks):
        fields = (read_text(f"{tasks}/{name}/schedstat") or "").split()
        number, waited_ns = whole(name), whole(fields[1]) if len(fields) > 1 else None
        if number is not None and waited_ns is not None:
            waits[number] = waited_ns / 1e9
    return waits
