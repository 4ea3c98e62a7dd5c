"""The installed services under a real systemd: what an owner sees who leaves them alone."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.transport import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the first of them makes a Debian, if there is none yet

DEVICE = "distreal-edge-device.service"
AGGREGATOR = "distreal-edge-aggregator.service"
WAIT_S = 90.0
QUICK = "RestartSec=100ms"


def goings(machine: Any) -> int:
    """Return how often the aggregator has heard that the device is gone, or degraded."""
    return int(machine.container.journal(AGGREGATOR).count("pi-1 is gone"))


def test_what_the_readme_says_is_typed_starts_a_device_that_trains(machine: Any) -> None:
    machine.type(4)

    assert machine.container.show(DEVICE, "ActiveState") == "active"
    assert machine.container.run("systemctl", "is-enabled", DEVICE).stdout.strip() == "enabled"
    machine.until_trained()
    assert machine.status() == "training, round 1"
    assert machine.container.show(DEVICE, "ControlGroup").startswith("/distreal.slice/")
    assert machine.container.show(AGGREGATOR, "ActiveState") == "active"
    machine.container.until(
        lambda: machine.status(AGGREGATOR) == "collecting, round 1 of 1001, 0 of 1 updates are here", WAIT_S, "status"
    )


def test_a_device_is_ready_before_its_broker_is(machine: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = machine.container.path("/etc/distreal-edge/device.toml")
    path.write_text(path.read_text().replace(str(machine.port), str(port)))

    machine.container.run("systemctl", "start", DEVICE)  # returns when it is ready

    machine.container.until(lambda: machine.status() == "idle; no connection to the broker", WAIT_S, machine.status())
    with EmbeddedBroker(port=port):
        machine.container.until(lambda: machine.status() == "idle", WAIT_S, "connected")


def test_a_device_survives_kill_9_but_after_the_third_time_it_rests(machine: Any) -> None:
    machine.change(DEVICE, QUICK)
    machine.container.run("systemctl", "start", DEVICE)
    gone = goings(machine)

    machine.until_trained()
    for killed in range(3):
        before = machine.main_pid()
        machine.container.run("systemctl", "kill", "--signal=KILL", DEVICE)
        machine.container.until(
            lambda before=before: machine.main_pid() not in {"0", before} and machine.status(), WAIT_S, "a restart"
        )
        assert machine.restarts() == killed + 1

    machine.container.until(lambda: machine.status().startswith("degraded: crashed 3 times"), WAIT_S, "safe mode")
    assert "degraded: crashed 3 times" in machine.container.journal(DEVICE, "--priority=err")
    trained = len(machine.steps())
    machine.container.until(lambda: goings(machine) == gone + 4, WAIT_S, "what the aggregator hears")
    assert len(machine.steps()) == trained
    machine.container.path("/var/lib/distreal-edge/crashes.json").unlink()
    machine.until_trained()


def test_the_watchdog_bites_when_the_trainer_is_stuck(machine: Any) -> None:
    machine.change(DEVICE, f"{QUICK}\nWatchdogSec=2\nEnvironment=DISTREAL_EDGE_TEST_DEADLOCK=1")
    machine.container.run("systemctl", "start", DEVICE)
    first = machine.main_pid()
    # From now on a start is sound, so that one bite is all there is to be.
    machine.change(DEVICE, f"{QUICK}\nWatchdogSec=2")

    machine.container.until(lambda: machine.restarts() == 1, WAIT_S, "the watchdog")

    machine.until_trained(2)
    assert machine.restarts() == 1
    journal = machine.container.run("journalctl", "--no-pager", "--output=cat").stdout
    assert "Watchdog timeout (limit 2s)!" in journal
    assert f"{DEVICE}: Killing process {first}" in journal
    assert "in _run" in machine.journal()  # where the trainer was


@pytest.fixture
def crumbs(machine: Any) -> Iterator[Callable[[], None]]:
    """Leave a tenth of a core to the running device, from the call on."""
    limit = Path("/sys/fs/cgroup/cpu")
    group: Path | None = None

    def leave() -> None:
        nonlocal group
        machine.container.run("systemctl", "set-property", "--runtime", DEVICE, "CPUQuota=10%")
        # Where this machine's groups are of the old kind, a container's systemd may not limit anything.
        if (limit / "cpu.cfs_quota_us").exists():
            inside = machine.container.path("/sys/fs/cgroup/systemd" + machine.container.show(DEVICE, "ControlGroup"))
            processes = (inside / "cgroup.procs").read_text().split()
            (name,) = re.findall(r"^\d+:cpu:/(.*)$", Path(f"/proc/{processes[0]}/cgroup").read_text(), re.MULTILINE)
            group = limit / name / "crumbs"
            group.mkdir()
            (group / "cpu.cfs_quota_us").write_text("10000")
            for process in processes:
                (group / "cgroup.procs").write_text(process)

    yield leave
    if group is not None:
        for process in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(process)
        group.rmdir()
    machine.container.run("systemctl", "revert", DEVICE)


def test_the_watchdog_leaves_a_device_alone_whose_mini_batches_take_longer_than_its_interval(
    machine: Any, crumbs: Callable[[], None]
) -> None:
    machine.change(DEVICE, "WatchdogSec=2")
    machine.container.run("systemctl", "start", DEVICE)
    crumbs()
    slow = time.time()

    machine.container.until(
        lambda: any(float(step.split(",")[0]) > slow for step in machine.steps()), WAIT_S, "a mini-batch"
    )

    step = machine.steps()[-1].split(",")
    assert float(step[8]) > 2.0
    assert machine.restarts() == 0


@pytest.mark.parametrize("stuck", [False, True], ids=["sound", "stuck"])
def test_a_device_stops_within_two_seconds_and_leaves_a_clean_state(machine: Any, stuck: bool) -> None:
    # A trainer that does not come back is for everybody else what a very long mini-batch in native code is.
    machine.change(DEVICE, "Environment=DISTREAL_EDGE_TEST_DEADLOCK=1" if stuck else "")
    machine.container.run("systemctl", "start", DEVICE)
    if stuck:
        machine.container.until(lambda: machine.status() == "training, round 1", WAIT_S, "training")
    else:
        machine.until_trained()

    gone = goings(machine)

    machine.container.run("systemctl", "stop", DEVICE)

    said = machine.container.run("journalctl", "--no-pager", "--output=short-monotonic", f"--unit={DEVICE}").stdout
    asked_s, ended_s = (
        float(re.findall(rf"^\[ *([\d.]+)\] .* systemd\[1\]: {word} ", said, re.MULTILINE)[-1])
        for word in ("Stopping", "Stopped")
    )
    assert 0.0 < ended_s - asked_s < 2.0
    # Asked about a unit that it has forgotten, systemd would say `success` in any case.
    assert f"{DEVICE}: Deactivated successfully." in said.rpartition("Stopping")[2]
    state = machine.container.path("/var/lib/distreal-edge")
    kept = {path.name for path in state.iterdir()} - {"aggregator"}
    assert kept == {"lock", "session", "spool", "blobs", "steps.csv"}
    assert list((state / "spool").iterdir()) == []
    machine.container.until(lambda: goings(machine) == gone + 1, WAIT_S, "offline")


def test_a_mistake_in_the_configuration_is_not_tried_again(machine: Any) -> None:
    machine.change(DEVICE, QUICK)
    machine.write("/etc/distreal-edge/device.toml", "federation = 1\n")

    machine.container.run("systemctl", "start", DEVICE, check=False)

    assert machine.container.show(DEVICE, "ActiveState") == "failed"
    assert machine.container.show(DEVICE, "ExecMainStatus") == "2"
    assert machine.restarts() == 0
