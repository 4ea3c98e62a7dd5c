"""Updates on their way in: chunks put together, checked, and answered. Memory is bounded by the devices selected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distreal_edge.transport import Ack, Assembler

if TYPE_CHECKING:
    from distreal_edge.errors import ProtocolError
    from distreal_edge.transport import UpdateTopic

__all__ = ["Inbound", "refusal"]

QUIET_S = 3.0
"""Missing chunks of an update that has not grown for so long are asked for."""


@dataclass(slots=True)
class _Arriving:
    uid: str
    assembler: Assembler
    grew_s: float


@dataclass(slots=True)
class Inbound:
    """At most one arriving update per device; a new one takes the place of an unfinished one."""

    cap_bytes: int
    _arriving: dict[str, _Arriving] = field(default_factory=dict)

    def add(self, topic: UpdateTopic, frame: bytes, now: float) -> bytes | None:
        """Take a chunk in; return the whole update once it is there.

        Raises `ProtocolError` for a chunk that is damaged or contradicts the others.
        """
        arriving = self._arriving.get(topic.device)
        if arriving is None or arriving.uid != topic.uid:
            arriving = _Arriving(topic.uid, Assembler(cap_bytes=self.cap_bytes), now)
            self._arriving[topic.device] = arriving
        arriving.grew_s = now
        progress = arriving.assembler.add(frame, where=f"update {topic.uid} of {topic.device}")
        if not progress.complete:
            return None
        del self._arriving[topic.device]
        return arriving.assembler.data

    def forget(self, device: str) -> None:
        """Drop what a device has sent so far."""
        self._arriving.pop(device, None)

    def quiet(self, now: float) -> list[tuple[str, Ack]]:
        """Return whom to ask for missing chunks."""
        asked: list[tuple[str, Ack]] = []
        for device, arriving in self._arriving.items():
            if now - arriving.grew_s >= QUIET_S:
                arriving.grew_s = now
                asked.append((device, Ack(arriving.uid, "resend", None, arriving.assembler.missing)))
        return asked


def refusal(uid: str, error: ProtocolError) -> Ack:
    """Return the answer to an update that cannot be counted."""
    return Ack(uid, "refused", str(error)[:500])
