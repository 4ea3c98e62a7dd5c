"""The installed service with a certificate: root's files, handed over by systemd, and nobody else's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.identity import KeyFolder

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DEVICE = "distreal-edge-device.service"
PROGRAM = "/opt/distreal-edge/bin/distreal-edge"
CONFIG = "/etc/distreal-edge/device.toml"
WAIT_S = 90.0


def test_an_enrolled_service_connects_with_keys_that_only_root_can_read_and_the_doctor_sees_them(
    machine: Any, mosquitto_with: Any, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    keys = KeyFolder.create(tmp_path / "keys", "garden", ("localhost",), 8883, now)
    (enrolment,) = keys.add(["pi-1"], now)
    machine.write("/root/pi-1.enrolment", enrolment.read_text())
    config = machine.container.path(CONFIG)
    config.unlink()

    with mosquitto_with(keys.path, tmp_path / "run") as port:
        machine.container.run(PROGRAM, "enroll", "/root/pi-1.enrolment", "--config", CONFIG)
        text = config.read_text()
        assert 'state = "/var/lib/distreal-edge"' in text
        text = text.replace('name = "folder"', 'name = "npz"').replace("/srv/images", "/srv/images.npz")
        config.write_text(text.replace("port = 8883", f"port = {port}"))
        machine.container.run("systemctl", "start", DEVICE)
        machine.container.until(
            lambda: f"connected to broker localhost:{port}" in machine.journal(), WAIT_S, machine.journal()
        )
        as_service = ("runuser", "-u", "distreal-edge", "--")
        refused = machine.container.run(*as_service, "cat", "/etc/distreal-edge/tls/pi-1.key", check=False)
        examined = machine.container.run(*as_service, PROGRAM, "doctor", "--config", CONFIG, check=False).stdout

    assert refused.returncode != 0
    told = [
        line for line in examined.splitlines() if line.startswith(("PASSED   broker", "PASSED   cert", "PASSED   key"))
    ]
    assert [line.split(":")[0].split()[-1] for line in told] == ["broker", "certificate", "certificate", "key"], (
        examined
    )
    assert "we know each other" in told[0]
    assert "/run/credentials/distreal-edge-device.service/tls_pi-1.key" in told[-1]
