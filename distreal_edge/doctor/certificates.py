"""Judge for how long the certificates are good that we and the broker show each other."""

from __future__ import annotations

import calendar
import re
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distreal_edge.transport import TlsFiles

__all__ = ["CertificateReading", "judge_certificates", "read_certificates"]

_DAY_S: Final = 86400.0
_SOON_S: Final = 30.0 * _DAY_S
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}


@dataclass(frozen=True, slots=True)
class CertificateReading:
    """A file of certificates, and between which times (Unix seconds) all of them are good; or why it cannot be read."""

    path: Path
    from_s: float = 0.0
    until_s: float = 0.0
    failure: str = ""


def read_certificates(files: TlsFiles) -> tuple[CertificateReading, ...]:
    """Read the certificate of the authority, and our own."""
    return tuple(_read(path) for path in (files.ca, files.certificate))


def judge_certificates(readings: tuple[CertificateReading, ...], now_s: float) -> tuple[Finding, ...]:
    """Say of each file whether it is good now, and for a month to come."""
    return tuple(_judge(reading, now_s) for reading in readings)


def _judge(reading: CertificateReading, now_s: float) -> Finding:
    renew = "make a new one and put it in this place, then restart the program"
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
        return Finding("certificate", f"{reading.path}: good for {days:.0f} days only", renew)
    return Finding("certificate", f"{reading.path}: good until {until}")


def _read(path: Path) -> CertificateReading:
    try:
        texts = _PEM.findall(path.read_text(encoding="ascii", errors="replace"))
        times = [_validity(ssl.PEM_cert_to_DER_cert(text)) for text in texts]
    except OSError as error:
        return CertificateReading(path, failure=error.strerror or str(error))
    except (ValueError, IndexError):
        return CertificateReading(path, failure="its certificate is damaged")
    if not times:
        return CertificateReading(path, failure="holds no certificate")
    return CertificateReading(path, max(begin for begin, _ in times), min(end for _, end in times))


def _validity(certificate: bytes) -> tuple[float, float]:
    """Return `notBefore` and `notAfter` of an X.509 certificate (RFC 5280, 4.1); raise `ValueError`."""
    ((tag, outer),) = _elements(certificate)
    _, signed = next(_elements(outer))
    fields = [element for element in _elements(signed) if element[0] != _VERSION]
    _, _, _, (validity_tag, validity), *_ = fields  # serial number, algorithm, issuer, validity
    begin, end = _elements(validity)
    if (tag, validity_tag) != (_SEQUENCE, _SEQUENCE):
        raise ValueError("not a certificate")
    return _seconds(*begin), _seconds(*end)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of the elements that stand one after the other (DER)."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise ValueError("cut off")
        yield tag, data[at : at + length]
        at += length


def _seconds(tag: int, content: bytes) -> float:
    if tag not in _TIMES:
        raise ValueError("no time")
    return float(calendar.timegm(time.strptime(content.decode("ascii"), _TIMES[tag])))
