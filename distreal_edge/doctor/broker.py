"""Judge whether the broker can be reached, and speaks MQTT 5."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from distreal_edge.doctor.finding import Finding
from distreal_edge.transport.connection import Connection, Endpoint
from distreal_edge.transport.inbox import Inbox
from distreal_edge.transport.tls import explain_loss, tls_context

if TYPE_CHECKING:
    from distreal_edge.transport import TlsFiles

__all__ = ["BrokerReading", "judge_broker", "read_broker"]

_TIMEOUT_S: Final = 5.0
_VERDICT_S: Final = 1.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class BrokerReading:
    """How far a connection came, and what was said where it ended; `seconds` until the broker had agreed."""

    host: str
    port: int
    reached: Literal["nothing", "name", "port", "handshake", "broker"]
    said: str = ""
    seconds: float = 0.0


def read_broker(host: str, port: int, tls: TlsFiles | None = None, *, greet: bool = True) -> BrokerReading:
    """Connect as somebody who never comes back; raise `ConfigError` when the files cannot be used.

    Without `greet` only as far as TLS goes: a broker that takes the name in a certificate for the client's id would
    end the connection of the program that has the same one.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return BrokerReading(host, port, "nothing", getattr(error, "strerror", None) or str(error))
    refusals = [_refusal(*address) for address in addresses]
    if all(refusals):
        return BrokerReading(host, port, "name", refusals[-1])
    if tls is not None and not greet:
        return _shake_hands_only(host, port, tls)
    return _shake_hands(host, port, tls)


def _refusal(family: int, kind: int, protocol: int, _name: str, address: tuple[Any, ...]) -> str:
    """Return why there is no way to an address, or nothing when somebody listens there."""
    with socket.socket(family, kind, protocol) as attempt:
        attempt.settimeout(_TIMEOUT_S)
        try:
            attempt.connect(address)
        except TimeoutError:
            return f"no answer within {_TIMEOUT_S:.0f} s"
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _shake_hands(host: str, port: int, tls: TlsFiles | None) -> BrokerReading:
    endpoint = Endpoint(
        host=host,
        port=port,
        client_id=f"doctor-{secrets.token_hex(8)}",
        keepalive_s=30,
        tls=None if tls is None else tls_context(tls),
    )
    began_s = time.monotonic()
    connection = Connection(endpoint, Inbox(), lambda _session_present: connection.close())
    ending = connection.run()
    if ending.was_connected:
        return BrokerReading(host, port, "broker", seconds=time.monotonic() - began_s)
    return BrokerReading(host, port, "port", ending.reason)


def _shake_hands_only(host: str, port: int, tls: TlsFiles) -> BrokerReading:
    context, began_s = tls_context(tls), time.monotonic()
    try:
        with (
            socket.create_connection((host, port), _TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as shaken,
        ):
            seconds = time.monotonic() - began_s
            # With TLS 1.3 the broker says afterwards what it thinks of our certificate, and nothing when it is good.
            shaken.settimeout(_VERDICT_S)
            with contextlib.suppress(TimeoutError):
                if not shaken.recv(1):
                    return BrokerReading(host, port, "port", "ended the connection after the handshake")
    except OSError as error:
        return BrokerReading(host, port, "port", explain_loss(str(error), tls=True, accepted=False))
    return BrokerReading(host, port, "handshake", seconds=seconds)


def judge_broker(reading: BrokerReading) -> Finding:
    """Say how to mend what a connection ended at."""
    where = f"{reading.host}:{reading.port}"
    here = reading.host in _LOOPBACK
    match reading.reached:
        case "broker":
            return Finding("broker", f"{where} speaks MQTT 5, answered after {1e3 * reading.seconds:.0f} ms")
        case "handshake":
            said = f"{where} and we know each other, after {1e3 * reading.seconds:.0f} ms; the program here talks to it"
            return Finding("broker", said)
        case "nothing":
            return Finding(
                "broker",
                f"{reading.host} cannot be found: {reading.said}",
                "give host under [broker] as a name that `getent hosts NAME` knows here, or as an address",
            )
        case "name" if here:
            return Finding(
                "broker",
                f"{where}: {reading.said}",
                "sudo apt-get install mosquitto && sudo systemctl enable --now mosquitto, or mend port under [broker]; "
                "`systemctl status mosquitto` says why it does not run",
            )
        case "name":
            return Finding(
                "broker",
                f"{where}: {reading.said}",
                "start the broker there with a `listener` for this network (broker_config/mosquitto.conf), "
                "let its firewall pass the port, or mend host and port under [broker]",
            )
        case "port" if reading.said.startswith("TLS: ") and "; " in reading.said:
            meaning, _, remedy = reading.said.partition("; ")
            return Finding("broker", f"{where}: {meaning}", remedy)
        case "port":
            return Finding(
                "broker",
                f"{where}: {reading.said}",
                "see that port under [broker] is that of mosquitto 2 or newer, and why it turned us away: "
                "journalctl -u mosquitto",
            )
