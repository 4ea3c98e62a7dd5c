"""What `status` and `doctor` say of the installed services, as their owner types them."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEVICE = "distreal-edge-device.service"
PROGRAM = "/opt/distreal-edge/bin/distreal-edge"
WAIT_S = 40.0


def as_user(machine: Any, user: str, *arguments: str) -> tuple[int, str, str]:
    ran = machine.container.run("runuser", "-u", user, "--", PROGRAM, *arguments, check=False)
    return ran.returncode, ran.stdout, ran.stderr


def test_root_asks_the_hardened_services_and_others_are_sent_away(machine: Any) -> None:
    machine.container.run("systemctl", "start", DEVICE)
    machine.until_trained()

    def told() -> list[dict[str, Any]]:
        ran = machine.container.run(PROGRAM, "status", "--json", check=False)
        return [json.loads(line) for line in ran.stdout.splitlines()]

    machine.container.until(lambda: told()[0]["status"]["state"] == "training", WAIT_S, "training")
    device, aggregator = told()
    assert device["process_id"] > 0
    assert (device["status"]["role"], device["status"]["device"], device["status"]["images"]) == ("device", "pi-1", 512)
    assert (aggregator["status"]["role"], aggregator["status"]["devices"]) == ("aggregator", ["pi-1"])
    assert as_user(machine, "distreal-edge", "status", "--state", "/var/lib/distreal-edge")[0] == 0
    code, _, said = as_user(machine, "nobody", "status", "--state", "/var/lib/distreal-edge")
    assert code == 8
    assert "belongs to another user; ask as that user, or with sudo" in said

    machine.container.run("systemctl", "stop", DEVICE)
    ran = machine.container.run(PROGRAM, "status", "--config", "/etc/distreal-edge/device.toml", check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "nothing is running there" in ran.stderr


def test_the_services_user_has_its_machine_looked_at(machine: Any) -> None:
    machine.container.run("systemctl", "start", DEVICE)
    machine.until_trained()
    code, out, _ = as_user(machine, "distreal-edge", "doctor", "--json", "--config", "/etc/distreal-edge/device.toml")
    told = json.loads(out)
    checks = {each["check"]: each for each in told["checks"]}
    assert code == (1 if told["problems"] else 0)
    for name in ("configuration", "program", "broker", "state folder", "images", "engine"):
        assert checks[name]["passed"], checks[name]
    pid = machine.main_pid()
    assert checks["program"]["found"].startswith(f"a device (process {pid}): ")
    assert checks["processors"]["found"].startswith(f"process {pid} may use ")
