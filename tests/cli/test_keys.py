"""`distreal-edge keys`: what it prints, and where a service finds what was installed."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distreal_edge.cli.service import broker_arguments, handed_over_files
from distreal_edge.config import Broker, DeviceConfig, load_config
from distreal_edge.errors import ConfigError
from distreal_edge.transport import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import CompletedProcess

    Run = Callable[..., CompletedProcess[str]]

CREATE = ("keys", "create", "--federation", "garden", "--broker", "localhost")


def test_a_list_names_everybody_with_what_became_of_them(cli: Run) -> None:
    cli(*CREATE)
    cli("keys", "add", "pi-1", "pi-2")
    cli("keys", "revoke", "pi-2")
    told = json.loads(cli("keys", "list", "--json").stdout)
    assert {(each["identity"], each["role"], each["state"]) for each in told["certificates"]} == {
        ("garden/aggregator", "aggregator", "good"), ("garden/broker", "broker", "good"),
        ("garden/device/pi-1", "device", "good"), ("garden/device/pi-2", "device", "revoked"),
    }  # fmt: skip
    assert all(
        datetime.fromisoformat(each["until"]) > datetime.fromisoformat(each["from"]) for each in told["certificates"]
    )
    assert [each["revoked"] is not None for each in told["certificates"]] == [False, False, False, True]
    shown = cli("keys", "list").stdout
    for each in told["certificates"]:
        assert f"{each['name']} " in shown
        assert each["serial"][:12] in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (CREATE, 2, "nothing in it is overwritten"),
        (("keys", "add", "aggregator"), 2, "that is what the aggregator is called"),
        (("keys", "add", "pi/1"), 2, "use 1 to 64 of the characters"),
        (("keys", "revoke", "pi-7"), 2, "no certificate was made for it"),
        (("keys", "renew", "pi-7"), 2, "`distreal-edge keys add` makes one"),
        (("keys", "list", "--folder", "nowhere"), 2, "no federation's keys are here"),
        (("keys", "create", "--federation", "x", "--broker", "a b", "--folder", "new"), 2, "give a host's name"),
        (("enroll", "nothing"), 2, "No such file"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(cli: Run, arguments: tuple[str, ...], code: int, said: str) -> None:
    cli(*CREATE)
    ran = cli(*arguments)
    assert ran.returncode == code
    assert ran.stderr.startswith("distreal-edge: ")
    assert ran.stderr.count("\n") == 1
    assert said in ran.stderr
    assert not Path("new").exists()


def test_keys_that_are_in_use_are_left_alone(cli: Run) -> None:
    cli(*CREATE)
    from distreal_edge.identity import KeyFolder  # noqa: PLC0415

    with KeyFolder(Path("keys")).held():
        ran = cli("keys", "add", "pi-1")
    assert ran.returncode == 8
    assert not Path("keys/enrolment/pi-1.enrolment").exists()


@pytest.fixture
def enrolled(cli: Run, tmp_path: Path) -> Broker:
    cli(*CREATE)
    cli("keys", "add", "pi-1")
    cli("enroll", "keys/enrolment/pi-1.enrolment")
    assert (tmp_path / "device.toml").exists()
    return load_config(tmp_path / "device.toml", DeviceConfig).broker


def test_a_service_takes_the_credentials_that_systemd_hands_over(
    enrolled: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = TlsFiles(*(tmp_path / "tls" / name for name in ("ca.pem", "pi-1.pem", "pi-1.key")))
    assert handed_over_files(enrolled) == beside
    (tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert handed_over_files(enrolled) == beside  # nothing was handed over
    for path in (beside.ca, beside.certificate, beside.key):
        path.rename(tmp_path / "credentials" / f"tls_{path.name}")
    arguments = broker_arguments(enrolled)
    assert arguments["tls"].key == tmp_path / "credentials" / "tls_pi-1.key"
    assert arguments["port"] == 8883


def test_a_file_that_is_not_there_is_named_before_anything_starts(enrolled: Broker, tmp_path: Path) -> None:
    (tmp_path / "tls" / "pi-1.key").unlink()
    with pytest.raises(ConfigError, match=r"tls/pi-1\.key: cannot be read: No such file"):
        broker_arguments(enrolled)
