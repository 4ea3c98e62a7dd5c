"""Who may be talked to, and how: TLS with one certificate per device, plain text only where nobody else listens."""

from __future__ import annotations

import ipaddress
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - a dataclass field, resolvable at run time

from distreal_edge.errors import ConfigError

__all__ = ["TlsFiles", "check_plaintext", "is_loopback", "refused_by_tls", "tls_context"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the authority that signed the broker's certificate, our own certificate, and its private key."""

    ca: Path
    certificate: Path
    key: Path


class ClosingSocket(ssl.SSLSocket):
    """A TLS socket that closes itself when the handshake fails; paho loses its hold on it then."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands, or close and raise."""
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Make a client's context: TLS 1.2 or newer, the broker's name verified; raise ConfigError for unusable files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = ClosingSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=files.ca)
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError) as error:
        # ssl does not say which file it could not read
        names = f"{files.ca}, {files.certificate}, {files.key}"
        raise ConfigError(
            f"TLS files {names}: cannot be used ({error}); check that they exist and belong together"
        ) from None
    return context


def is_loopback(host: str) -> bool:
    """Whether `host` is this very machine by its name or address; nothing is looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_plaintext(host: str, *, allowed: bool) -> None:
    """Refuse plain text to another machine with ConfigError, unless it is `allowed`: then warn in the log."""
    if is_loopback(host):
        return
    if not allowed:
        raise ConfigError(
            f"broker {host}: without TLS anybody on the network can read and change everything; give ca, "
            "certificate and key, or allow plain text (allow_plaintext) on a network that you trust"
        )
    _log.warning(
        "talking to broker %s in plain text, as allow_plaintext says: anybody on the network can read it", host
    )


def refused_by_tls(error: ssl.SSLError) -> bool:
    """Whether trying again cannot help: a certificate was refused, by us or by the broker, or it does not speak TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    reason = error.reason or ""
    return "ALERT" in reason or reason in {"WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"}
