"""A booted systemd with the services installed, a broker outside, and programs inside their sandbox."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def _load_container() -> Any:
    specification = importlib.util.spec_from_file_location("container", Path(__file__).with_name("container.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


container = _load_container()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    reason = container.why_not()
    if reason is not None:
        pytest.skip(reason)
    try:
        container.make_root()
    except RuntimeError as error:
        pytest.skip(str(error))
    with container.installed_machine(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture
def machine(installed: Any) -> Iterator[Any]:
    """A machine whose device is stopped and remembers nothing."""
    installed.write("/etc/distreal-edge/device.toml", container.DEVICE_TOML.format(port=installed.port))
    yield installed
    installed.container.run("systemctl", "stop", container.DEVICE)
    installed.container.run("systemctl", "reset-failed", container.DEVICE, check=False)
    installed.container.run("bash", "-c", "rm -rf /var/lib/distreal-edge/{crashes.json,steps.csv,spool}")
    installed.change(container.DEVICE, "")


@pytest.fixture
def sandboxed(machine: Any) -> Any:
    """Run a Python program in the very sandbox of a unit, and return the JSON that it prints."""

    def run(unit: str, program: str) -> Any:
        probe = unit.replace("distreal-edge", "probe")
        machine.write(f"/run/systemd/system/{probe}", (container.REPOSITORY / "systemd" / unit).read_text())
        machine.write("/srv/probe.py", program)
        machine.change(
            probe,
            "Type=exec\nWatchdogSec=0\nRestart=no\nStandardOutput=file:/run/probe.json\nStandardError=journal\n"
            "ExecStart=\nExecStart=/opt/distreal-edge/bin/python /srv/probe.py",
        )
        machine.container.run("systemctl", "start", probe)
        machine.container.until(
            lambda: machine.container.show(probe, "ActiveState") in {"inactive", "failed"},
            container.WAIT_S,
            "the probe",
        )
        assert machine.container.show(probe, "Result") == "success", machine.container.journal(probe)
        text = machine.container.path("/run/probe.json").read_text()
        machine.container.path("/run/probe.json").unlink()
        return json.loads(text)

    return run
