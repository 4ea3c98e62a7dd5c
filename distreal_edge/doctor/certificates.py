"""Judge whether the certificates that we and the broker show each other are good, and fit together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.doctor.finding import Finding
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography import x509

    from distreal_edge.transport import TlsFiles

__all__ = ["CertificateReading", "PairReading", "judge_certificates", "judge_pair", "read_certificates", "read_pair"]

_DAY_S: Final = 86400.0
_SOON_S: Final = 30.0 * _DAY_S
_REVOCATIONS: Final = "crl.pem"
"""The revocation list, when there is one beside the authority's certificate."""


@dataclass(frozen=True, slots=True)
class CertificateReading:
    """A file of certificates, and between which times (Unix seconds) all of them are good; or why it cannot be read."""

    path: Path
    from_s: float = 0.0
    until_s: float = 0.0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class PairReading:
    """How our own certificate fits the authority and the key, and who else can read that; None: it cannot be known."""

    certificate: Path
    authority: Path
    key: Path
    key_failure: str = ""
    belongs: bool | None = None
    signed: bool | None = None
    for_clients: bool | None = None
    revoked: bool | None = None
    open_to_others: bool = False


def read_certificates(files: TlsFiles) -> tuple[CertificateReading, ...]:
    """Read the certificate of the authority, and our own."""
    return tuple(_read(path)[0] for path in (files.ca, files.certificate))


def read_pair(files: TlsFiles) -> PairReading:
    """Read how the files fit together."""
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415 - only where there is TLS

    from distreal_edge.identity.checking import belongs, is_for, leads_to, read_key  # noqa: PLC0415

    authorities, chain = _read(files.ca)[1], _read(files.certificate)[1]
    failure, key, open_to_others = "", None, False
    try:
        key = read_key(files.key.read_bytes())
        open_to_others = _open_to_others(files.key)
    except OSError as error:
        failure = error.strerror or str(error)
    except ValueError:
        failure = "holds no private key, or a damaged or locked one"
    return PairReading(
        files.certificate,
        files.ca,
        files.key,
        failure,
        belongs(key, chain[0]) if key is not None and chain else None,
        leads_to(chain, authorities) if chain and authorities else None,
        is_for(chain[0], ExtendedKeyUsageOID.CLIENT_AUTH) if chain else None,
        _is_revoked(chain[0], authorities, files.ca.with_name(_REVOCATIONS)) if chain else None,
        open_to_others,
    )


def judge_certificates(readings: tuple[CertificateReading, ...], now_s: float) -> tuple[Finding, ...]:
    """Say of each file whether it is good now, and for a month to come."""
    return tuple(_judge(reading, now_s) for reading in readings)


def judge_pair(reading: PairReading) -> tuple[Finding, ...]:
    """Say whether certificate, authority and key fit together, and whether the key is ours alone."""
    enrol = "install them anew, from one enrolment file: distreal-edge enroll FILE --replace"
    problems: list[tuple[str, str]] = []
    if reading.key_failure:
        problems.append((f"{reading.key}: {reading.key_failure}", enrol))
    if reading.belongs is False:
        problems.append((f"{reading.key}: does not belong to {reading.certificate}", enrol))
    if reading.signed is False:
        problems.append((f"{reading.certificate}: was not signed by the authority in {reading.authority}", enrol))
    if reading.for_clients is False:
        what = "is a server's, no broker will take it from us"
        problems.append((f"{reading.certificate}: {what}", enrol))
    if reading.revoked:
        problems.append((f"{reading.certificate}: was revoked", "distreal-edge keys add makes a new one"))
    if reading.open_to_others:
        problems.append((f"{reading.key}: others on this machine can read it", f"chmod 600 {reading.key}"))
    if problems:
        return tuple(Finding("key", found, remedy) for found, remedy in problems)
    known = all(each is not None for each in (reading.belongs, reading.signed, reading.for_clients))
    return (Finding("key", f"{reading.key}: fits its certificate, which the authority has signed"),) if known else ()


def _judge(reading: CertificateReading, now_s: float) -> Finding:
    renew = "distreal-edge keys renew makes a new one; put it in this place and restart the program"
    if reading.failure:
        return Finding("certificate", f"{reading.path}: {reading.failure}", "give a PEM file that this user may read")
    until = time.strftime("%Y-%m-%d", time.gmtime(reading.until_s))
    if now_s < reading.from_s:
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(reading.from_s))
        return Finding(
            "certificate",
            f"{reading.path}: good from {since} only",
            "set the clock right: sudo timedatectl set-ntp true",
        )
    if now_s >= reading.until_s:
        return Finding("certificate", f"{reading.path}: not good since {until}", renew)
    if now_s >= reading.until_s - _SOON_S:
        days = (reading.until_s - now_s) / _DAY_S
        return Finding("certificate", f"{reading.path}: good for {count_of(round(days), 'day')} only", renew)
    return Finding("certificate", f"{reading.path}: good until {until}")


def _read(path: Path) -> tuple[CertificateReading, Sequence[x509.Certificate]]:
    from distreal_edge.identity.checking import read_certificates as parse  # noqa: PLC0415

    try:
        content = path.read_bytes()
    except OSError as error:
        return CertificateReading(path, failure=error.strerror or str(error)), ()
    if b"-----BEGIN CERTIFICATE-----" not in content:
        return CertificateReading(path, failure="holds no certificate"), ()
    try:
        found = parse(content)
    except ValueError:
        return CertificateReading(path, failure="its certificate is damaged"), ()
    begin = max(each.not_valid_before_utc for each in found).timestamp()
    end = min(each.not_valid_after_utc for each in found).timestamp()
    return CertificateReading(path, begin, end), found


def _is_revoked(certificate: x509.Certificate, authorities: Sequence[x509.Certificate], path: Path) -> bool | None:
    """Look for a certificate on the list beside the authority's; None when there is none that the authority signed."""
    from cryptography import x509  # noqa: PLC0415

    try:
        found = x509.load_pem_x509_crl(path.read_bytes())
        if not any(found.is_signature_valid(each.public_key()) for each in authorities):  # type: ignore[arg-type]
            return None
        return found.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    except (OSError, ValueError, TypeError):
        return None


def _open_to_others(path: Path) -> bool:
    """Return whether others can read a key; root's may be open to a group, as systemd's credentials are."""
    status = path.stat()
    return bool(status.st_mode & 0o004) or bool(status.st_mode & 0o040 and status.st_uid != 0)
