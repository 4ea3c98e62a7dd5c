"""The list of certificates that an authority has taken back, as the broker reads it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from distreal_edge.identity.certificates import DAYS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from distreal_edge.identity.certificates import Authority

__all__ = ["make_list", "must_be_signed_again", "number_of", "revoked_in"]

_SLACK = timedelta(days=1)


def make_list(authority: Authority, revoked: Mapping[int, datetime], number: int, now: datetime) -> bytes:
    """Sign the list as PEM; `revoked` maps serial numbers to when they were taken back, `number` rises from 1."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - _SLACK)
        .next_update(min(now + timedelta(days=DAYS), authority.certificate.not_valid_after_utc))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                x509.SubjectKeyIdentifier.from_public_key(authority.key.public_key())
            ),
            critical=False,
        )
    )
    for serial, when in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def revoked_in(revocations: x509.CertificateRevocationList) -> dict[int, datetime]:
    """Return the serial numbers on a list, and when each was taken back."""
    return {entry.serial_number: entry.revocation_date_utc for entry in revocations}


def number_of(revocations: x509.CertificateRevocationList) -> int:
    """Return the number of a list; each is higher than the one before."""
    return revocations.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def must_be_signed_again(revocations: x509.CertificateRevocationList, now: datetime) -> bool:
    """Return whether half of the list's time is over. A broker with a list that has run out lets nobody in."""
    end = revocations.next_update_utc
    return end is None or end - now < timedelta(days=DAYS) / 2
