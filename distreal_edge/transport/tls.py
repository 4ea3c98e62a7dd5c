"""Who may be talked to, and how: TLS with one certificate per device, plain text only where nobody else listens."""

from __future__ import annotations

import ipaddress
import logging
import re
import ssl
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - a dataclass field, resolvable at run time
from typing import Final

from distreal_edge.errors import ConfigError

__all__ = ["PLAINTEXT", "TlsFiles", "check_plaintext", "explain_loss", "is_loopback", "refused_by_tls", "tls_context"]

_log = logging.getLogger(__name__)

PLAINTEXT: Final = "in plain text, as allow_plaintext says: anybody on the network can read and change everything"
"""What is logged at every start and every connection that is open to others."""

_ENROL: Final = "`distreal-edge enroll` with a file from the keys that the broker has"
_WRAPPING: Final = re.compile(r"^.*\[SSL: [A-Z0-9_]+\] |\.? \(_ssl\.c:\d+\)$")
# OpenSSL's words, in capitals with spaces, and what they mean to whoever reads our log. "ALERT": the broker says so.
_MEANINGS: Final = (
    ("ALERT UNKNOWN CA", "the broker does not know the authority of our certificate", _ENROL),
    (
        "ALERT CERTIFICATE EXPIRED",
        "the broker says that our certificate, or its own revocation list, has run out",
        "see both clocks; then `distreal-edge keys renew`, and install what it makes",
    ),
    (
        "ALERT CERTIFICATE REVOKED",
        "our certificate was revoked",
        "if that was a mistake, `distreal-edge keys add` anew",
    ),
    ("ALERT CERTIFICATE REQUIRED", "the broker wants a certificate of us", _ENROL),
    ("ALERT HANDSHAKE FAILURE", "the broker wants a certificate of us, or other ciphers", _ENROL),
    (
        "ALERT UNSUPPORTED CERTIFICATE",
        "the broker does not take our certificate, which is not a client's",
        "give ca, certificate and key as `distreal-edge enroll` shows them",
    ),
    ("ALERT PROTOCOL VERSION", "the broker speaks no TLS that we speak", "it must offer TLS 1.2 or newer"),
    ("UNSUPPORTED PROTOCOL", "the broker speaks no TLS that we speak", "it must offer TLS 1.2 or newer"),
    ("ALERT", "the broker refuses us", "`journalctl -u mosquitto` there says why"),
    (
        "MISMATCH, CERTIFICATE IS NOT VALID FOR",
        "the broker's certificate is for other names than host under [broker]",
        "give host as in the certificate, or `distreal-edge keys renew --broker HOST` and install what it makes",
    ),
    (
        "CERTIFICATE HAS EXPIRED",
        "the broker's certificate has run out",
        "see our clock; then `distreal-edge keys renew broker`, and install what it makes",
    ),
    ("CERTIFICATE IS NOT YET VALID", "the broker's certificate is not good yet", "set the clock right"),
    ("SELF-SIGNED CERTIFICATE", "another authority than ca vouches for the broker", _ENROL),
    ("SELF SIGNED CERTIFICATE", "another authority than ca vouches for the broker", _ENROL),
    ("LOCAL ISSUER CERTIFICATE", "another authority than ca vouches for the broker", _ENROL),
    ("CERTIFICATE VERIFY FAILED", "the broker's certificate is none for this broker", _ENROL),
    ("WRONG VERSION NUMBER", "the broker does not speak TLS on this port", "mend port under [broker]; 8883 is usual"),
    ("EOF OCCURRED", "the broker ended the handshake without a word", "see that it speaks TLS on this port"),
)


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
    for path in (files.ca, files.certificate, files.key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read: {error.strerror}; mend ca, certificate and key under [broker], or read it as "
                "its owner"
            ) from None
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
            "certificate and key (`distreal-edge enroll`), or allow plain text (allow_plaintext) on a network that you "
            "trust"
        )
    _log.warning("broker %s: %s", host, PLAINTEXT)


def refused_by_tls(error: ssl.SSLError) -> bool:
    """Whether trying again cannot help: a certificate was refused, by us or by the broker, or it does not speak TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    reason = error.reason or ""
    return "ALERT" in reason or reason in {"WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"}


def explain_loss(said: str, *, tls: bool, accepted: bool) -> str:
    """Return why a connection was lost, with what to do about it, from the words of OpenSSL or the system.

    `accepted`: the broker had let us in before.
    """
    words = said.upper().replace("_", " ")
    if tls and ("SSL" in words or "EOF" in words):
        for fragment, meaning, remedy in _MEANINGS:
            if fragment in words:
                return f"TLS: {meaning}; {remedy} ({_WRAPPING.sub('', said)})"
        return f"TLS: {said}"
    if not accepted and "RESET BY PEER" in words:
        return f"{said}; does it {'speak TLS' if tls else 'want TLS (ca, certificate and key)'} on this port?"
    return said
