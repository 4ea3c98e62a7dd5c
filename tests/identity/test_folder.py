"""The folder of a federation's keys: who is in it, who can read it, and what is never overwritten."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.errors import ConfigError, StateError
from distreal_edge.identity import KeyFolder, read_enrolment
from distreal_edge.identity.checking import read_certificates

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


def states(folder: KeyFolder, now: datetime) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in folder.issued(now):
        found.setdefault(each.member.name, []).append(each.state)
    return found


def digests(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_nobody_else_can_read_a_key_whatever_the_umask(tmp_path: Path, now: datetime) -> None:
    before = os.umask(0)
    try:
        folder = KeyFolder.create(tmp_path / "keys", "garden", ("localhost",), 8883, now)
        folder.add(["pi-1"], now)
    finally:
        os.umask(before)
    holding = [path for path in folder.path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in holding} == {"ca.key", "broker.key", "aggregator.enrolment", "pi-1.enrolment"}
    assert {path.stat().st_mode & 0o777 for path in holding} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in [folder.path, *folder.path.rglob("*")] if path.is_dir()} == {0o700}


def test_what_is_there_is_never_made_again(folder: KeyFolder, now: datetime) -> None:
    before = digests(folder.path)
    with pytest.raises(ConfigError, match="nothing in it is overwritten"):
        KeyFolder.create(folder.path, "garden", ("localhost",), 8883, now)
    with pytest.raises(ConfigError, match="there is a certificate already"):
        folder.add(["pi-3", "pi-1"], now)
    assert digests(folder.path) == before


def test_a_creation_that_fails_leaves_nothing_behind(tmp_path: Path, now: datetime) -> None:
    with pytest.raises(ConfigError, match="longer than the 64 characters"):
        KeyFolder.create(tmp_path / "keys", "f" * 60, ("localhost",), 8883, now)
    assert list(tmp_path.iterdir()) == []


def test_a_revoked_device_can_be_added_again_and_its_old_certificate_stays_revoked(
    folder: KeyFolder, now: datetime
) -> None:
    assert states(folder, now) == {
        "aggregator": ["good"], "broker": ["good"], "pi-1": ["good"], "pi-2": ["revoked"],
    }  # fmt: skip
    (path,) = folder.add(["pi-2"], now)
    assert sorted(states(folder, now)["pi-2"]) == ["good", "revoked"]
    assert read_enrolment(path, now).member.identity == "garden/device/pi-2"


def test_revoking_takes_back_renewed_certificates_too_and_the_file_that_was_not_installed_yet(
    folder: KeyFolder, now: datetime
) -> None:
    (path,) = folder.renew(["pi-1"], now)
    assert states(folder, now)["pi-1"] == ["good", "good"]
    assert folder.revoke(["pi-1"], now) == 2
    assert states(folder, now)["pi-1"] == ["revoked", "revoked"]
    assert not path.exists()
    assert folder.revoke(["pi-1"], now) == 0


def test_what_runs_out_within_half_a_year_is_renewed_and_nothing_else(folder: KeyFolder, now: datetime) -> None:
    folder.add(["short"], now, days=100)
    assert [path.name for path in folder.renew([], now)] == ["short.enrolment"]
    assert folder.renew([], now) == []
    later = now + timedelta(days=1700)
    assert [path.name for path in folder.renew([], later)] == [
        "aggregator.enrolment", "broker", "pi-1.enrolment", "short.enrolment",
    ]  # fmt: skip


def test_the_authority_is_renewed_while_all_can_still_go_over_to_it_one_by_one(
    folder: KeyFolder, openssl: Any, tmp_path: Path, now: datetime
) -> None:
    later = now + timedelta(days=7300 - 1825)
    folder.renew([], later)
    folder.add(["before"], later)
    assert (folder.path / "ca.pem").read_bytes() == (folder.path / "broker" / "ca.pem").read_bytes()
    old = tmp_path / "old.pem"
    old.write_bytes((folder.path / "ca.pem").read_bytes())
    later += timedelta(days=1)
    assert [path.name for path in folder.renew([], later)] == ["broker"]
    new = folder.path / "broker" / "ca.pem"
    assert new.read_bytes() != old.read_bytes()
    assert new.read_bytes() == (folder.path / "ca.pem").read_bytes()
    folder = KeyFolder(folder.path)
    assert folder.authority_runs_out == later + timedelta(days=7300)
    (after,) = folder.add(["after"], later)
    assert read_enrolment(after, later).authority == new.read_text()
    # Whoever has the old one and whoever has the new one know each other, and the list of the revoked as well.
    folder.refresh_list(later)
    for authority in (old, new):
        for issued in (folder.path / "issued").glob("*.pem"):
            begins = read_certificates(issued.read_bytes())[0].not_valid_before_utc
            at = str(int((begins + timedelta(days=2)).timestamp()))
            checked = openssl("verify", "-x509_strict", "-attime", at, "-CAfile", authority, issued)
            assert checked.returncode == 0, checked.stderr
        assert (
            "verify OK"
            in openssl("crl", "-noout", "-CAfile", authority, "-in", folder.path / "broker" / "crl.pem").stderr
        )


def test_a_federation_that_has_run_out_as_a_whole_is_renewed_as_a_whole(folder: KeyFolder, now: datetime) -> None:
    later = now + timedelta(days=8000)
    with pytest.raises(ConfigError, match="keys renew"):
        folder.add(["pi-3"], later)
    assert [path.name for path in folder.renew([], later)] == ["broker", "aggregator.enrolment", "pi-1.enrolment"]
    assert read_enrolment(folder.path / "enrolment" / "pi-1.enrolment", later).name == "pi-1"
    assert folder.refresh_list(later)


def test_the_broker_is_renewed_for_where_it_has_moved_to(folder: KeyFolder, openssl: Any, now: datetime) -> None:
    assert [path.name for path in folder.renew([], now, hosts=("new.lan",))] == ["broker"]
    shown = openssl("x509", "-noout", "-ext", "subjectAltName", "-in", folder.path / "broker" / "broker.pem").stdout
    assert "DNS:new.lan" in shown
    assert "laptop" not in shown
    (path,) = KeyFolder(folder.path).add(["pi-9"], now)
    assert read_enrolment(path, now).host == "new.lan"


def test_the_revocation_list_is_signed_again_when_half_its_time_is_over(
    folder: KeyFolder, openssl: Any, now: datetime
) -> None:
    assert not folder.refresh_list(now + timedelta(days=900))
    later = now + timedelta(days=930)
    assert folder.refresh_list(later)
    shown = openssl("crl", "-noout", "-text", "-in", folder.path / "broker" / "crl.pem").stdout
    assert "X509v3 CRL Number: \n                3" in shown  # made, then revoked on, then signed again
    assert shown.count("Serial Number:") == 1
    assert folder.list_runs_out == later + timedelta(days=1825)


@pytest.mark.parametrize("name", ["aggregator", "broker", "", "a/b", "a b", "x" * 65, "pi\n1"])
def test_a_name_that_cannot_be_a_devices_is_refused(folder: KeyFolder, now: datetime, name: str) -> None:
    with pytest.raises(ConfigError):
        folder.add([name], now)


def test_a_clock_before_the_authoritys_time_signs_nothing(folder: KeyFolder, now: datetime) -> None:
    with pytest.raises(ConfigError, match="set the clock right"):
        folder.add(["pi-3"], now - timedelta(days=3650))


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "settings.json", "broker/crl.pem"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", b"\xff{"])
def test_a_damaged_folder_is_told_by_its_file(folder: KeyFolder, now: datetime, name: str, content: bytes) -> None:
    (folder.path / name).write_bytes(content)
    with pytest.raises(StateError, match=f"{name}: cannot be read"):
        KeyFolder(folder.path).issued(now)


def test_a_folder_without_keys_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distreal-edge keys create"):
        KeyFolder(tmp_path)


def test_what_runs_for_long_never_imports_cryptography() -> None:
    program = (
        "import sys\n"
        "from distreal_edge import aggregator, config, device, doctor, transport\n"
        "from distreal_edge.cli import aggregate, run, status\n"
        "assert not [name for name in sys.modules if name.startswith('cryptography')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
