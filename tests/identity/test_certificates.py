"""Certificates and revocation lists, as OpenSSL's own command sees them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.errors import ConfigError
from distreal_edge.identity import KeyFolder
from distreal_edge.identity.certificates import host_name

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

VERIFY = ("verify", "-x509_strict", "-crl_check")


def of(folder: Path, name: str, state: str, now: datetime) -> Path:
    (found,) = [each for each in KeyFolder(folder).issued(now) if each.member.name == name and each.state == state]
    return folder / "issued" / f"{found.serial:040x}.pem"


def verify(openssl: Any, folder: Path, certificate: Path, purpose: str, *more: str) -> Any:
    lists = ("-CAfile", folder / "ca.pem", "-CRLfile", folder / "broker" / "crl.pem")
    return openssl(*VERIFY, "-purpose", purpose, *lists, *more, certificate)


@pytest.mark.parametrize(
    ("name", "purpose"), [("pi-1", "sslclient"), ("aggregator", "sslclient"), ("broker", "sslserver")]
)
def test_openssl_accepts_what_was_signed_for_its_purpose_and_for_no_other(
    made: Path, openssl: Any, now: datetime, name: str, purpose: str
) -> None:
    certificate = of(made, name, "good", now)
    accepted = verify(openssl, made, certificate, purpose)
    assert accepted.returncode == 0, accepted.stderr
    other = "sslserver" if purpose == "sslclient" else "sslclient"
    assert "purpose" in verify(openssl, made, certificate, other).stderr


def test_openssl_refuses_what_was_revoked_or_has_run_out(made: Path, openssl: Any, now: datetime) -> None:
    assert "certificate revoked" in verify(openssl, made, of(made, "pi-2", "revoked", now), "sslclient").stderr
    later = str(int((now + timedelta(days=1826)).timestamp()))
    refused = verify(openssl, made, of(made, "pi-1", "good", now), "sslclient", "-attime", later)
    assert "certificate has expired" in refused.stderr


@pytest.mark.parametrize(
    ("host", "known"),
    [("laptop.lan", True), ("192.168.7.1", True), ("fd00::7", True), ("pi.lan", False), ("192.168.7.2", False)],
)
def test_the_broker_is_known_by_the_names_it_was_given(made: Path, openssl: Any, host: str, known: bool) -> None:
    option = "-verify_hostname" if host.endswith("lan") else "-verify_ip"
    shown = verify(openssl, made, made / "broker" / "broker.pem", "sslserver", option, host)
    assert (shown.returncode == 0) is known


def test_a_member_cannot_be_an_authority_and_the_authority_makes_no_others(
    made: Path, openssl: Any, now: datetime
) -> None:
    text = openssl("x509", "-noout", "-text", "-in", made / "ca.pem").stdout
    assert "CA:TRUE, pathlen:0" in text
    assert "Certificate Sign, CRL Sign" in text
    member = openssl("x509", "-noout", "-text", "-in", of(made, "pi-1", "good", now)).stdout
    assert "CA:FALSE" in member
    assert "CN = garden/device/pi-1" in member
    assert "prime256v1" in member


def test_a_forged_certificate_is_not_accepted(made: Path, openssl: Any, now: datetime, tmp_path: Path) -> None:
    other = KeyFolder.create(tmp_path / "other", "garden", ("laptop.lan",), 8883, now)
    assert verify(openssl, made, of(other.path, "aggregator", "good", now), "sslclient").returncode != 0


def test_serial_numbers_are_random_and_never_the_same(made: Path, now: datetime) -> None:
    serials = [each.serial for each in KeyFolder(made).issued(now)]
    assert len(set(serials)) == len(serials)
    assert all(2**100 < serial < 2**160 for serial in serials)


def test_the_key_belongs_to_the_certificate(made: Path, openssl: Any) -> None:
    public = openssl("pkey", "-pubout", "-in", made / "broker" / "broker.key").stdout
    assert "BEGIN PUBLIC KEY" in public
    assert openssl("x509", "-noout", "-pubkey", "-in", made / "broker" / "broker.pem").stdout == public


@pytest.mark.parametrize(
    "host", ["", "pi_.lan-", "a b", "mqtt://pi", "pi.lan:8883", "ä.lan", "x" * 64, "pi..lan", 'a"b']
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="give a host's name or address"):
        host_name(host)
