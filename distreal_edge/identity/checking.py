"""Whether an authority, a certificate and a key fit together, and are good now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509.oid import ObjectIdentifier

__all__ = ["belongs", "is_for", "leads_to", "read_certificates", "read_key", "when_good"]


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return all certificates of a PEM text, at least one; raise `ValueError` when it is damaged or holds none."""
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:  # these are parsed only when they are asked for
            _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
    except Exception as error:  # noqa: BLE001 - cryptography has exceptions of its own for what it does not know
        raise ValueError(str(error)) from None
    return found


def read_key(pem: bytes) -> PrivateKeyTypes:
    """Return the private key of a PEM text; raise `ValueError` when it is damaged, of an unknown kind, or locked."""
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("it is locked with a password") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise ValueError(str(error)) from None


def belongs(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    """Return whether the key is the certificate's."""
    kind = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*kind) == certificate.public_key().public_bytes(*kind)


def leads_to(chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]) -> bool:
    """Return whether a certificate, the first of `chain`, was signed by an authority, or by others of the chain."""
    current, others = chain[0], [*chain[1:]]
    while True:
        if any(_signed(current, authority) for authority in authorities):
            return True
        issuer = next((other for other in others if _signed(current, other)), None)
        if issuer is None:
            return False
        others.remove(issuer)
        current = issuer


def is_for(certificate: x509.Certificate, usage: ObjectIdentifier) -> bool:
    """Return whether a certificate may be used so; one that says nothing may be used for anything."""
    try:
        return usage in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True


def when_good(certificate: x509.Certificate, now: datetime) -> str:
    """Return why a certificate is not good at this time; empty when it is."""
    if now < certificate.not_valid_before_utc:
        return f"good from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only"
    if now > certificate.not_valid_after_utc:
        return f"not good since {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return True
