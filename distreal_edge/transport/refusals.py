"""What a broker says when it refuses, and whether trying again can help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distreal_edge.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paho.mqtt.reasoncodes import ReasonCode

__all__ = ["Ending", "ending_of", "is_final", "refusal"]

# CONNACK and DISCONNECT reasons that trying again does not cure.
FINAL_REASONS = {
    0x84: "the broker does not speak MQTT 5; use mosquitto 2 or newer",
    0x85: "the broker refuses this client id; check the name of the device",
    0x86: "the broker refuses user name or password; check both",
    0x87: "the broker does not authorise this client; check its certificate or password, and the broker's ACL",
    0x8A: "the broker has banned this client",
    0x8C: "the broker wants another way of authentication",
    0x8E: "another client has connected with the same id; give every device a name of its own",
    0x90: "the broker refuses the topic of the will; check the broker's ACL",
    0x9A: "the broker does not retain messages; allow it in its configuration",
    0x9B: "the broker does not support quality of service 1; allow it in its configuration",
}
# PUBACK and SUBACK reasons of the same kind: not authorised, topic filter and topic name refused.
FINAL_TOPIC_REASONS = {0x87, 0x8F, 0x90}


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ended, and whether trying again can help."""

    reason: str
    final: bool = False
    was_connected: bool = False


def ending_of(code: ReasonCode) -> Ending:
    """Say how a CONNACK or DISCONNECT of this reason ends a connection."""
    explanation = FINAL_REASONS.get(code.value)
    return Ending(f"{code}: {explanation}" if explanation else str(code), final=explanation is not None)


def refusal(what: str, codes: Iterable[ReasonCode]) -> TransportError:
    """Return the error that a refused publish or subscribe fails with."""
    return TransportError(f"{what}: refused: {', '.join(map(str, codes))}; check the broker's ACL")


def is_final(codes: Iterable[ReasonCode]) -> bool:
    """Say whether a publish or subscribe that was refused so will be refused again."""
    return any(code.value in FINAL_TOPIC_REASONS for code in codes)
