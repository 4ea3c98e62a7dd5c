"""Watch the installed device train on a busy machine: its watchdog bites when it has to, and only then.

    sudo .venv/bin/python benchmarks/watchdog.py --minutes 10 --json watchdog.json

A real systemd boots in a container (`tests/systemd/container.py`; on Debian it needs systemd-container and mmdebstrap)
with the services installed as systemd/README.md says. As many loops as there are CPUs use all of them, while the
device, with the lowest priority that its unit gives it, trains without a pause. Then its trainer is deadlocked, and the
time until the restart taken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "systemd"))

from container import DEVICE, Installed, installed_machine, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOK_S = 10.0


@dataclass(frozen=True)
class Watched:
    """What came of it.

    `stopping_s` is what a stop took while the machine was busy, `biting_s` the time from the deadlock to the bite.
    """

    minutes: float
    watchdog_s: float
    loops: int
    mini_batches: int
    longest_mini_batch_s: float
    restarts: int
    bites: int
    stopping_s: float
    biting_s: float


@contextmanager
def busy_loops(machine: Installed, number: int) -> Iterator[None]:
    """Use so many CPUs, as services of the machine's owner would."""
    units = [f"busy-{index}.service" for index in range(number)]
    for unit in units:
        machine.container.run("systemd-run", f"--unit={unit}", "--property=Nice=0", "bash", "-c", "while :; do :; done")
    try:
        yield
    finally:
        machine.container.run("systemctl", "stop", *units)


def bites(machine: Installed) -> int:
    """Count how often the watchdog has bitten."""
    said = machine.container.run("journalctl", "--no-pager", "--output=cat", "--identifier=systemd").stdout
    return said.count(f"{DEVICE}: Watchdog timeout")


def watch(machine: Installed, arguments: argparse.Namespace) -> Watched:
    """Train under load for the time that is asked for, then deadlock the trainer."""
    # What is restarted is restarted at once, so that the time until then is the watchdog's.
    interval = [] if arguments.watchdog_s is None else [f"WatchdogSec={arguments.watchdog_s:g}"]
    machine.change(DEVICE, "\n".join([*interval, "RestartSec=0"]))
    machine.container.run("systemctl", "start", DEVICE)
    machine.until_trained()
    interval_s = float(machine.container.show(DEVICE, "WatchdogUSec").removesuffix("min").removesuffix("s"))
    interval_s *= 60.0 if machine.container.show(DEVICE, "WatchdogUSec").endswith("min") else 1.0
    with busy_loops(machine, arguments.loops):
        until_s = time.monotonic() + 60.0 * arguments.minutes
        while (left_s := until_s - time.monotonic()) > 0.0:
            time.sleep(min(LOOK_S, left_s))
            print(f"{left_s:6.0f} s left: {machine.status()}, {len(machine.steps())} mini-batches", flush=True)
        steps = machine.steps()
        restarts, bitten = machine.restarts(), bites(machine)
        began_s = time.monotonic()
        machine.container.run("systemctl", "stop", DEVICE)
        stopping_s = time.monotonic() - began_s
    machine.change(DEVICE, "\n".join([*interval, "RestartSec=0", "Environment=DISTREAL_EDGE_TEST_DEADLOCK=0"]))
    machine.container.run("systemctl", "start", DEVICE)
    machine.container.until(lambda: machine.status().startswith("training"), 60.0, "training")
    stuck_s = time.monotonic()
    machine.container.until(lambda: bites(machine) > bitten, 2.0 * interval_s, "a bite")
    return Watched(
        minutes=arguments.minutes,
        watchdog_s=interval_s,
        loops=arguments.loops,
        mini_batches=len(steps),
        longest_mini_batch_s=max(float(step.split(",")[8]) for step in steps),
        restarts=restarts,
        bites=bitten,
        stopping_s=stopping_s,
        biting_s=time.monotonic() - stuck_s,
    )


def main() -> None:
    """Read the arguments, watch, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the machine is busy")
    parser.add_argument("--loops", type=int, default=os.cpu_count(), help="how many loops use its CPUs")
    parser.add_argument("--watchdog-s", type=float, help="another interval than the unit's")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.exit(f"watchdog: {reason}")
    with tempfile.TemporaryDirectory() as folder, installed_machine(Path(folder)) as machine:
        watched = watch(machine, arguments)
    print(
        f"{watched.minutes:g} min with {watched.loops} busy loops, watchdog of {watched.watchdog_s:g} s: "
        f"{watched.mini_batches} mini-batches, the longest {watched.longest_mini_batch_s:.1f} s, "
        f"{watched.restarts} restarts, {watched.bites} bites; stopped within {watched.stopping_s:.1f} s; "
        f"deadlocked: bitten after {watched.biting_s:.1f} s"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(watched), indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if watched.restarts or watched.bites else 0)


if __name__ == "__main__":
    main()
