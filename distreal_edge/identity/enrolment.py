"""The file with which a device, or the aggregator, gets its identity: one text with all that it must be told."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from cryptography.x509.oid import ExtendedKeyUsageOID

from distreal_edge.errors import ConfigError, printable
from distreal_edge.identity.certificates import Member, check_name, host_name, member_of
from distreal_edge.identity.checking import belongs, is_for, leads_to, read_certificates, read_key, when_good

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

__all__ = ["Enrolment", "encode_enrolment", "read_enrolment"]

_LARGEST_BYTES: Final = 64 * 1024

_Pem = Annotated[str, msgspec.Meta(max_length=16 * 1024)]
_Short = Annotated[str, msgspec.Meta(max_length=253)]


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who one is, where the broker listens, whom to trust, and the certificate and private key to show, as PEM."""

    federation: _Short
    role: Literal["device", "aggregator"]
    name: _Short
    host: _Short
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    authority: _Pem
    certificate: _Pem
    key: _Pem
    format: Literal[1] = 1

    @property
    def member(self) -> Member:
        """Who this is."""
        return Member(self.federation, self.role, self.name)


def encode_enrolment(enrolment: Enrolment) -> bytes:
    """Return the file's content, TOML. It holds a private key: only its owner may ever read it."""
    # Names and hosts have no character that would need an escape, and PEM neither quotes nor backslashes.
    return (
        f"# {enrolment.name} of the federation {enrolment.federation}. This file holds a private key: show it to "
        "nobody, and delete it\n# once it is installed, on that machine, by `distreal-edge enroll FILE`.\n"
        f'format = {enrolment.format}\nfederation = "{enrolment.federation}"\nrole = "{enrolment.role}"\n'
        f'name = "{enrolment.name}"\nhost = "{enrolment.host}"\nport = {enrolment.port}\n'
        f'authority = """\n{enrolment.authority}"""\ncertificate = """\n{enrolment.certificate}"""\n'
        f'key = """\n{enrolment.key}"""\n'
    ).encode()


def read_enrolment(path: Path, now: datetime) -> Enrolment:
    """Read an enrolment file; raise `ConfigError` unless all of it fits together and is good now."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        enrolment = msgspec.convert(_parse(data), type=Enrolment)
        check_name(enrolment.federation, "federation")
        check_name(enrolment.name, "name")
        host_name(enrolment.host)
    except (ValueError, RecursionError) as error:
        why = printable(" ".join(str(error).split()))[:200]
        raise ConfigError(
            f"{path}: is no enrolment file, or a damaged one ({why}); copy it again from where `distreal-edge keys` "
            "wrote it"
        ) from None
    if fault := _fault(enrolment, now):
        raise ConfigError(f"{path}: {fault}")
    return enrolment


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > _LARGEST_BYTES:
        raise ValueError(f"more than {_LARGEST_BYTES} bytes")
    return tomllib.loads(data.decode())


def _fault(enrolment: Enrolment, now: datetime) -> str:
    """Return what is wrong with the certificates, and what to do; empty when all is well."""
    anew = f"get a new file: `distreal-edge keys renew {enrolment.name}` where the keys are"
    try:
        authorities = read_certificates(enrolment.authority.encode())
        certificates = read_certificates(enrolment.certificate.encode())
        key = read_key(enrolment.key.encode())
    except ValueError as error:
        why = printable(" ".join(str(error).split()))[:200]
        return f"a certificate or the key in it is damaged ({why}); copy the file again"
    if len(authorities) != 1 or len(certificates) != 1:
        return (
            f"it holds {len(authorities)} authorities and {len(certificates)} certificates instead of one each; {anew}"
        )
    authority, certificate = authorities[0], certificates[0]
    if not belongs(key, certificate):
        return f"its key does not belong to its certificate; {anew}"
    if not leads_to(certificates, authorities) or not leads_to(authorities, authorities):
        return f"its certificate was not signed by its authority; {anew}"
    if member_of(certificate) != enrolment.member or not is_for(certificate, ExtendedKeyUsageOID.CLIENT_AUTH):
        whose = printable(certificate.subject.rfc4514_string())[:200]
        return f"says it is {enrolment.member.identity}, but its certificate is another's ({whose}); {anew}"
    for what, each in (("authority", authority), ("certificate", certificate)):
        if why := when_good(each, now):
            early = now < each.not_valid_before_utc
            return f"its {what} is {why}; {'set the clock right' if early else anew}"
    return ""
