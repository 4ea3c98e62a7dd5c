"""What the broker is given: its certificate and key, whom to trust, who was taken back, and who may do what."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Final

from distreal_edge.identity.certificates import certificate_pem

if TYPE_CHECKING:
    from distreal_edge.identity.certificates import Authority

__all__ = ["AUTHORITY", "CERTIFICATE", "KEY", "REVOCATIONS", "access_list", "broker_files"]

AUTHORITY: Final = "ca.pem"
CERTIFICATE: Final = "broker.pem"
KEY: Final = "broker.key"
REVOCATIONS: Final = "crl.pem"


def access_list(federation: str) -> str:
    """Return who may write and read what, for mosquitto."""
    template = files("distreal_edge").joinpath("identity", "acl").read_text(encoding="utf-8")
    return template.replace("FEDERATION", federation)


def broker_files(authority: Authority, federation: str) -> dict[str, bytes]:
    """Return the files that stay the same as long as the federation does, by name."""
    configuration = files("distreal_edge").joinpath("identity", "mosquitto-tls.conf").read_bytes()
    return {
        AUTHORITY: certificate_pem(authority.certificate),
        "acl": access_list(federation).encode(),
        "mosquitto.conf": configuration,
    }
