"""Updates on their way in: chunks put together, and refusals remembered for as long as chunks may still come."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distreal_edge.errors import ProtocolError, printable
from distreal_edge.transport import Ack, Assembler

if TYPE_CHECKING:
    from distreal_edge.transport import UpdateTopic

__all__ = ["Inbound"]

QUIET_S = 3.0
"""Missing chunks of an update that has not grown for so long are asked for."""
_MOST_REFUSALS = 10_000
_MOST_CHARACTERS = 500


@dataclass(slots=True)
class _Arriving:
    uid: str
    assembler: Assembler
    grew_s: float


@dataclass(slots=True)
class Inbound:
    """At most one arriving update per device; a new one takes the place of an unfinished one.

    Times are of any clock that does not go back.
    """

    cap_bytes: int
    _arriving: dict[str, _Arriving] = field(default_factory=dict)
    _refused: OrderedDict[str, Ack] = field(default_factory=OrderedDict)

    def add(self, topic: UpdateTopic, frame: bytes, now: float) -> bytes | None:
        """Take a chunk in; return the whole update once it is there.

        Raises `ProtocolError` for a chunk that is damaged or contradicts the others.
        """
        arriving = self._arriving.get(topic.device)
        if arriving is None or arriving.uid != topic.uid:
            arriving = _Arriving(topic.uid, Assembler(cap_bytes=self.cap_bytes), now)
            self._arriving[topic.device] = arriving
        try:
            progress = arriving.assembler.add(frame, where=f"update {topic.uid} of {topic.device}")
        except ProtocolError as error:
            raise ProtocolError(f"chunk: {error}") from None
        if not progress.duplicate:
            arriving.grew_s = now
        if not progress.complete:
            return None
        del self._arriving[topic.device]
        return arriving.assembler.data

    def refuse(self, device: str, uid: str, reason: str) -> Ack:
        """Drop what has come of an update, remember that it is refused, and return the answer.

        The refusal of a device's newest update is remembered, because the rest of its chunks may be on their way.
        """
        if device in self._arriving and self._arriving[device].uid == uid:
            del self._arriving[device]
        # It may quote what a device sent, which a log or JSON could choke on.
        ack = Ack(uid, "refused", printable(reason[:_MOST_CHARACTERS]))
        self._refused[device] = ack
        self._refused.move_to_end(device)
        if len(self._refused) > _MOST_REFUSALS:
            self._refused.popitem(last=False)
        return ack

    def refused(self, device: str, uid: str) -> Ack | None:
        """Return the answer that this update was given already, if it was refused."""
        ack = self._refused.get(device)
        return ack if ack is not None and ack.uid == uid else None

    def arriving(self) -> tuple[tuple[str, str], ...]:
        """Return device and uid of every update of which a part has come."""
        return tuple((device, arriving.uid) for device, arriving in self._arriving.items())

    def quiet(self, now: float) -> list[tuple[str, Ack]]:
        """Return whom to ask for missing chunks."""
        asked: list[tuple[str, Ack]] = []
        for device, arriving in self._arriving.items():
            if now - arriving.grew_s >= QUIET_S:
                arriving.grew_s = now
                asked.append((device, Ack(arriving.uid, "resend", None, arriving.assembler.missing)))
        return asked
