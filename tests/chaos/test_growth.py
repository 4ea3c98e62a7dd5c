"""A thousand rounds of tiny updates: nothing grows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.transport import EmbeddedBroker, Topics

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

MOST_GROWTH = {"aggregator": 1.05, "pi-1": 1.02}


@dataclass(frozen=True)
class Use:
    """What a program holds: memory in kB, descriptors, threads."""

    resident: int
    files: int
    threads: int


def use_of(process_id: int) -> Use:
    """Return what a program holds, the least of what is seen within a second: between two rounds."""
    process, found = Path("/proc") / str(process_id), []
    until_s = time.monotonic() + 1.0
    while time.monotonic() < until_s:
        lines = (process / "status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        files = len(list((process / "fd").iterdir()))
        found.append(Use(int(status["VmRSS"].split()[0]), files, int(status["Threads"])))
        time.sleep(0.01)
    return Use(*(min(getattr(use, name) for use in found) for name in ("resident", "files", "threads")))


def test_a_thousand_rounds_take_no_more_memory_descriptors_or_threads_than_a_few(
    beside: Callable[[str], Any],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    farms, first, last = beside("farm"), times(5, 100), times(15, 1000)
    with EmbeddedBroker() as broker, farms.Listener(broker, Topics("farm")) as listener:
        farm = farms.Farm(tmp_path, broker)
        try:
            farm.aggregator(number=last + 100, seconds=60, upload_seconds=1, least_devices=1)
            farm.device("pi-1")
            uses = []
            for number in (first, last):
                farms.wait_for(
                    lambda number=number: listener.manifests and listener.manifests[-1][1].number > number,
                    f"round {number}", 3600,
                )  # fmt: skip
                uses.append({name: use_of(farm.running[name].pid) for name in MOST_GROWTH})
        finally:
            farm.end()
    early, late = uses
    grown = {name: late[name].resident / early[name].resident for name in MOST_GROWTH}
    for name, most in MOST_GROWTH.items():
        assert grown[name] <= most, (name, early[name], late[name])
        assert late[name].files <= early[name].files, (name, early[name], late[name])
        assert late[name].threads <= early[name].threads, (name, early[name], late[name])
    figure(
        f"rounds of tiny updates, from the {first}th to the {last}th",
        "resident memory: "
        + ", ".join(f"{name} {100 * (share - 1):+.1f} %" for name, share in grown.items())
        + "; no descriptor or thread more",
        "resident memory grows at most 5 % (aggregator), 2 % (device); no leaks",
    )
