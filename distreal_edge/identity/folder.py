"""The folder of a federation's keys: its authority, what it has signed, and what is handed out.

    settings.json          the federation's name, the broker's hosts and port
    ca.pem, ca.key         the authority: whoever has the key can let anybody in
    issued/SERIAL.pem      every certificate ever signed
    broker/                what the broker is given
    enrolment/NAME.enrolment  what the aggregator and each device is given, once; may be deleted afterwards

A certificate is in `issued` before it is handed out, so that it can always be taken back.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from distreal_edge.durable import held_folder, make_folder, remove_durably, sync_folder, write_durably
from distreal_edge.errors import ConfigError, StateError
from distreal_edge.identity.broker import AUTHORITY, CERTIFICATE, KEY, REVOCATIONS, broker_files
from distreal_edge.identity.certificates import (
    DAYS,
    Authority,
    Member,
    certificate_pem,
    check_name,
    host_name,
    key_pem,
    make_authority,
    make_key,
    member_of,
    renew_authority,
    sign,
)
from distreal_edge.identity.checking import read_certificates, read_key, when_good
from distreal_edge.identity.enrolment import Enrolment, encode_enrolment
from distreal_edge.identity.revocation import make_list, must_be_signed_again, number_of, revoked_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

__all__ = ["Issued", "KeyFolder"]

_SETTINGS: Final = "settings.json"
_SIGNED: Final = "ca.pem"
_SIGNS: Final = "ca.key"
_ROLES: Final = ("aggregator", "broker")
_SOON: Final = timedelta(days=180)


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    federation: str
    hosts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    port: int


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was signed: for whom, until when it is good, and what became of it."""

    member: Member
    serial: int
    from_: datetime
    until: datetime
    state: Literal["good", "expired", "revoked"]
    revoked: datetime | None = None


class KeyFolder:
    """A federation's keys. `create` makes them; what is opened here is there already, else `ConfigError`."""

    def __init__(self, path: Path) -> None:
        if not (path / _SIGNED).exists():
            raise ConfigError(
                f"{path}: no federation's keys are here; make them with `distreal-edge keys create`, or say --folder"
            )
        self.path = path
        self._settings = self._read_settings()
        self._authority = self._read_authority()

    @classmethod
    def create(cls, path: Path, federation: str, hosts: tuple[str, ...], port: int, now: datetime) -> KeyFolder:
        """Make an authority, and the certificates of broker and aggregator; all of it is there then, or nothing."""
        check_name(federation, "federation")
        for host in hosts:
            host_name(host)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path}: is there already, and nothing in it is overwritten; say another --folder")
        make_folder(path.parent)
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.unfinished")
        try:
            unfinished.mkdir(mode=0o700)
            cls._fill(unfinished, federation, hosts, port, now)
            unfinished.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise StateError(f"{path}: cannot be made: {error.strerror}; check the folder's owner") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls(path)

    @classmethod
    def _fill(cls, path: Path, federation: str, hosts: tuple[str, ...], port: int, now: datetime) -> None:
        settings = _Settings(federation, hosts, port)
        authority = make_authority(federation, now)
        for inner in ("issued", "broker", "enrolment"):
            (path / inner).mkdir(mode=0o700)
        cls._write_settings(path, settings)
        write_durably(path / _SIGNS, key_pem(authority.key), private=True)
        write_durably(path / _SIGNED, certificate_pem(authority.certificate))
        for name, content in broker_files(authority, federation).items():
            write_durably(path / "broker" / name, content)
        folder = cls(path)
        folder._write_list({}, 1, now)
        for role in _ROLES:
            folder._issue(role, now, DAYS)

    def held(self) -> AbstractContextManager[None]:
        """Keep others out while inside."""
        return held_folder(self.path)

    def issued(self, now: datetime) -> tuple[Issued, ...]:
        """Return every certificate that was signed: aggregator, broker, devices by name; of each the newest first."""
        revoked = revoked_in(self._revocations())
        found = []
        for file in (self.path / "issued").glob("*.pem"):
            certificate = self._read_certificate(file)
            member = member_of(certificate)
            if member is None:
                raise StateError(f"{file}: is not a certificate that was signed here; move it away")
            taken_back = revoked.get(certificate.serial_number)
            until = certificate.not_valid_after_utc
            state: Literal["good", "expired", "revoked"] = "expired" if until < now else "good"
            found.append(
                Issued(
                    member,
                    certificate.serial_number,
                    certificate.not_valid_before_utc,
                    until,
                    state if taken_back is None else "revoked",
                    taken_back,
                )
            )
        newest_first = sorted(found, key=lambda each: each.from_, reverse=True)
        return tuple(sorted(newest_first, key=lambda each: (each.member.role == "device", each.member.name)))

    def add(self, names: Iterable[str], now: datetime, days: int = DAYS) -> list[Path]:
        """Sign a certificate for each new device, and return their enrolment files."""
        wanted = tuple(dict.fromkeys(names))
        for name in wanted:
            check_name(name, "device")
            if name in _ROLES:
                raise ConfigError(f"device {name!r}: that is what the {name} is called; give the device another name")
        good = {each.member.name for each in self.issued(now) if each.state == "good"}
        if there := [name for name in wanted if name in good]:
            raise ConfigError(
                f"{', '.join(there)}: there is a certificate already; `distreal-edge keys renew` makes a new one, "
                "`distreal-edge keys revoke` takes the old one back"
            )
        return [self._issue(name, now, days) for name in wanted]

    def renew(self, names: Iterable[str], now: datetime, days: int = DAYS, hosts: tuple[str, ...] = ()) -> list[Path]:
        """Sign new certificates with new keys, and return what is to be installed anew.

        Without names: for whoever's last certificate is good for less than half a year, and for the authority when a
        new certificate would outlive it. The old ones stay good until they run out or are revoked. `hosts` are where
        the broker is reached from now on, instead of before.
        """
        names = tuple(names)
        named = bool(names or hosts)
        if not named and self._renew_authority(now):
            names = ("broker",)
        if hosts:
            for host in hosts:
                host_name(host)
            self._settings = msgspec.structs.replace(self._settings, hosts=hosts)
            self._write_settings(self.path, self._settings)
            names = (*names, "broker")
        latest: dict[str, datetime] = {}
        for each in self.issued(now):
            if each.state != "revoked":
                latest[each.member.name] = max(each.until, latest.get(each.member.name, each.until))
        soon = () if named else tuple(name for name, until in latest.items() if until - now < _SOON)
        wanted = tuple(dict.fromkeys((*names, *soon)))
        if unknown := [name for name in wanted if name not in latest and name not in _ROLES]:
            raise ConfigError(
                f"{', '.join(unknown)}: no certificate is there to renew; `distreal-edge keys add` makes one"
            )
        return [self._issue(name, now, days) for name in wanted]

    def _renew_authority(self, now: datetime) -> bool:
        """Sign the authority's own certificate again when its end is near; return whether that was so.

        Who trusts the old one trusts what is signed from now on, and the other way round, until the old one runs out.
        That is five years from now at the soonest, and within them everybody gets the new one with a new certificate.
        """
        old = self._authority.certificate
        if now < old.not_valid_before_utc or old.not_valid_after_utc - now >= timedelta(days=DAYS):
            return False
        self._authority = renew_authority(self._authority, now)
        pem = certificate_pem(self._authority.certificate)
        write_durably(self.path / "broker" / AUTHORITY, pem)
        write_durably(self.path / _SIGNED, pem)
        return True

    def revoke(self, names: Iterable[str], now: datetime) -> int:
        """Take back every certificate of these members that is still good, for ever; return how many."""
        wanted = tuple(dict.fromkeys(names))
        issued = self.issued(now)
        if unknown := [name for name in wanted if name not in {each.member.name for each in issued}]:
            raise ConfigError(
                f"{', '.join(unknown)}: no certificate was made for it; `distreal-edge keys list` has all"
            )
        serials = {each.serial for each in issued if each.member.name in wanted and each.state == "good"}
        old = self._revocations()
        if serials:
            self._write_list(revoked_in(old) | dict.fromkeys(serials, now), number_of(old) + 1, now)
        for name in wanted:
            remove_durably(self._enrolment(name))
        return len(serials)

    def refresh_list(self, now: datetime) -> bool:
        """Sign the revocation list again when half its time is over; return whether that was so."""
        old = self._revocations()
        if not must_be_signed_again(old, now):
            return False
        self._write_list(revoked_in(old), number_of(old) + 1, now)
        return True

    @property
    def authority_runs_out(self) -> datetime:
        """When nobody would trust anybody any more."""
        return self._authority.certificate.not_valid_after_utc

    @property
    def list_runs_out(self) -> datetime | None:
        """When the broker, with the present revocation list, would let nobody in any more."""
        return self._revocations().next_update_utc

    # -- files -------------------------------------------------------------------------------------------------------

    def _issue(self, name: str, now: datetime, days: int) -> Path:
        if why := when_good(self._authority.certificate, now):
            raise ConfigError(
                f"{self.path / _SIGNED}: {why}, and it is {now:%Y-%m-%d %H:%M} UTC here; set the clock right, or "
                "renew it: `distreal-edge keys renew`"
            )
        settings = self._settings
        member = Member(settings.federation, "device", name)
        if name == "aggregator":
            member = Member(settings.federation, "aggregator", name)
        elif name == "broker":
            member = Member(settings.federation, "broker", name)
        key = make_key()
        hosts = settings.hosts if name == "broker" else ()
        certificate = sign(self._authority, member, key.public_key(), now, days=days, hosts=hosts)
        write_durably(self.path / "issued" / f"{certificate.serial_number:040x}.pem", certificate_pem(certificate))
        if name == "broker":
            # The key first: a broker that is started in between refuses the pair, and says so.
            write_durably(self.path / "broker" / KEY, key_pem(key), private=True)
            write_durably(self.path / "broker" / CERTIFICATE, certificate_pem(certificate))
            return self.path / "broker"
        enrolment = Enrolment(
            federation=settings.federation,
            role="aggregator" if member.role == "aggregator" else "device",
            name=name,
            host=settings.hosts[0],
            port=settings.port,
            authority=certificate_pem(self._authority.certificate).decode(),
            certificate=certificate_pem(certificate).decode(),
            key=key_pem(key).decode(),
        )
        path = self._enrolment(name)
        write_durably(path, encode_enrolment(enrolment), private=True)
        return path

    def _enrolment(self, name: str) -> Path:
        return self.path / "enrolment" / f"{name}.enrolment"

    def _write_list(self, revoked: Mapping[int, datetime], number: int, now: datetime) -> None:
        write_durably(self.path / "broker" / REVOCATIONS, make_list(self._authority, revoked, number, now))

    def _revocations(self) -> x509.CertificateRevocationList:
        path = self.path / "broker" / REVOCATIONS
        try:
            found = x509.load_pem_x509_crl(path.read_bytes())
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from None
        if not found.is_signature_valid(self._authority.key.public_key()):
            raise self._damaged(path, ValueError(f"{_SIGNED} did not sign it"))
        return found

    @staticmethod
    def _write_settings(path: Path, settings: _Settings) -> None:
        write_durably(path / _SETTINGS, msgspec.json.format(msgspec.json.encode(settings)) + b"\n")

    def _read_settings(self) -> _Settings:
        path = self.path / _SETTINGS
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Settings)
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from None

    def _read_authority(self) -> Authority:
        try:
            key = read_key((self.path / _SIGNS).read_bytes())
        except (OSError, ValueError) as error:
            raise self._damaged(self.path / _SIGNS, error) from None
        certificate = self._read_certificate(self.path / _SIGNED)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise StateError(f"{self.path / _SIGNS}: does not belong to {_SIGNED}; bring both back from your copy")
        return Authority(certificate, key)

    def _read_certificate(self, path: Path) -> x509.Certificate:
        try:
            return read_certificates(path.read_bytes())[0]
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from None

    @staticmethod
    def _damaged(path: Path, error: Exception) -> StateError:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        return StateError(f"{path}: cannot be read: {why}; bring it back from your copy of the folder")
