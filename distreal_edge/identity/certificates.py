"""The authority of a federation and the certificates that it signs: X.509, keys on the curve P-256."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from distreal_edge.errors import ConfigError

__all__ = [
    "DAYS",
    "Authority",
    "Member",
    "Role",
    "certificate_pem",
    "check_name",
    "host_name",
    "key_pem",
    "make_authority",
    "make_key",
    "member_of",
    "renew_authority",
    "sign",
]

Role: TypeAlias = Literal["device", "aggregator", "broker"]

DAYS: Final = 1825
"""For how long a certificate and a revocation list are good."""
_AUTHORITY_DAYS: Final = 7300
# Whoever reads a certificate first may have a clock that is a little behind.
_SLACK: Final = timedelta(days=1)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_AUTHORITY_NAME: Final = "distreal-edge authority"
_LONGEST_IDENTITY: Final = 64  # X.509's limit for a common name


@dataclass(frozen=True, slots=True)
class Member:
    """Who a certificate is for. The name of the aggregator and of the broker is their role's."""

    federation: str
    role: Role
    name: str

    @property
    def identity(self) -> str:
        """What the broker takes for the user's name, and where the member's own topics begin below `distreal/1/`."""
        return f"{self.federation}/device/{self.name}" if self.role == "device" else f"{self.federation}/{self.role}"


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate that everybody in a federation trusts, and the key that signs in its name."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def check_name(name: str, what: str) -> str:
    """Return `name` if it can stand in a topic, else raise `ConfigError`; `what` says whose name it is."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{what} {name!r}: use 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return name


def host_name(text: str) -> x509.DNSName | x509.IPAddress:
    """Return the name or address of a host as it stands in a certificate; raise `ConfigError` when it is neither."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise ConfigError(f"broker {text!r}: give a host's name or address, as laptop.lan or 192.168.7.1")
    return x509.DNSName(text)


def make_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, without a password: whoever can read the file can use it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_authority(federation: str, now: datetime) -> Authority:
    """Make a federation's authority. It signs certificates and revocation lists, and no further authorities."""
    check_name(federation, "federation")
    key = make_key()
    return Authority(_vouch_for_itself(key, _name(federation, _AUTHORITY_NAME), now - _SLACK, now), key)


def renew_authority(authority: Authority, now: datetime) -> Authority:
    """Return an authority that is good for as long again. Key and name stay: so does what the old one has signed."""
    old = authority.certificate
    return Authority(_vouch_for_itself(authority.key, old.subject, old.not_valid_before_utc, now), authority.key)


def _vouch_for_itself(
    key: ec.EllipticCurvePrivateKey, name: x509.Name, begin: datetime, now: datetime
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(now + timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def sign(
    authority: Authority,
    member: Member,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    *,
    days: int = DAYS,
    hosts: tuple[str, ...] = (),
) -> x509.Certificate:
    """Sign a member's certificate: the broker's for a server under the names `hosts`, all others' for a client."""
    if len(member.identity) > _LONGEST_IDENTITY:
        raise ConfigError(
            f"{member.identity!r} is longer than the {_LONGEST_IDENTITY} characters that a certificate holds; "
            "choose shorter names for the federation or the device"
        )
    usage = ExtendedKeyUsageOID.SERVER_AUTH if member.role == "broker" else ExtendedKeyUsageOID.CLIENT_AUTH
    authority_key = x509.SubjectKeyIdentifier.from_public_key(authority.key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(member.federation, member.identity))
        .issuer_name(authority.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - _SLACK, authority.certificate.not_valid_before_utc))
        .not_valid_after(min(now + timedelta(days=days), authority.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key), critical=False)
    )
    if hosts:
        names = x509.SubjectAlternativeName([host_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def member_of(certificate: x509.Certificate) -> Member | None:
    """Return who a certificate is for; None when it is not one that an authority of ours signs."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    match str(names[0].value).split("/") if len(names) == 1 else []:
        case [federation, "device", name] if _NAME.fullmatch(federation) and _NAME.fullmatch(name):
            return Member(federation, "device", name)
        case [federation, ("aggregator" | "broker") as role] if _NAME.fullmatch(federation):
            return Member(federation, "aggregator" if role == "aggregator" else "broker", role)
    return None


def _name(federation: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
