"""What a session tells its owner, and the bounded queue it tells it through.

Messages of quality of service 1 are acknowledged as they arrive while there is room, and beyond that only when the
owner *takes* them: a broker sends no more than RECEIVE_MAXIMUM unacknowledged messages, so a slow owner slows the
broker down. The network thread is never blocked: pings, acknowledgements and publishing go on, so an owner that waits
for a delivery while its queue is full does not wait for itself. (rumqttd ignores the receive maximum, sends 100, and
then reads nothing more from us until they are acknowledged; the room is large enough that its demo never gets there.)
"""

from __future__ import annotations

import queue
from collections.abc import Callable  # noqa: TC003 - a dataclass field, resolvable at run time
from dataclasses import dataclass, field, replace
from typing import TypeAlias

__all__ = ["RECEIVE_MAXIMUM", "ROOM_BYTES", "ROOM_MESSAGES", "Connected", "Disconnected", "Event", "Inbox", "Message"]

RECEIVE_MAXIMUM = 32
# The room: as much is acknowledged before it is taken.
ROOM_MESSAGES = 1000
ROOM_BYTES = 16 * 1024 * 1024
# For brokers that overshoot the receive maximum (mosquitto 2.0.11 does, by hundreds, when its socket was full) or
# ignore it: what may wait at most. Beyond this the connection is ended.
MOST_MESSAGES = 10 * ROOM_MESSAGES
MOST_BYTES = 4 * ROOM_BYTES


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Message:
    """A message that arrived. `retained`: the broker had kept it, it is not new."""

    topic: str
    payload: bytes = field(repr=False)
    retained: bool = False
    acknowledge: Callable[[], None] = field(default=_nothing, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted us; subscriptions and retained state have been sent. Messages of this connection follow."""

    session_present: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone. When `final`, the session has given up and a person must act."""

    reason: str
    final: bool = False


Event: TypeAlias = Message | Connected | Disconnected


class Inbox(queue.Queue[Event]):
    """A queue.Queue that acknowledges messages: as they are put while there is room, else as they are taken out."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting_bytes = 0
        self._unacknowledged = 0

    @property
    def has_room(self) -> bool:
        """Whether what arrives now is acknowledged at once."""
        with self.mutex:
            return self._has_room()

    @property
    def is_overrun(self) -> bool:
        """Whether the broker goes on sending although far too much waits here unacknowledged."""
        with self.mutex:
            return self._waiting_bytes >= MOST_BYTES or self._qsize() >= MOST_MESSAGES

    def _has_room(self) -> bool:
        # Acknowledgements must go out in the order of arrival: none at once while an older one is outstanding.
        return self._unacknowledged == 0 and self._waiting_bytes < ROOM_BYTES and self._qsize() < ROOM_MESSAGES

    # The hooks that queue.Queue offers its subclasses; called with the queue's lock held.
    def _put(self, item: Event) -> None:
        if isinstance(item, Message):
            if self._has_room():
                item.acknowledge()
                item = replace(item, acknowledge=_nothing)
            elif item.acknowledge is not _nothing:
                self._unacknowledged += 1
            self._waiting_bytes += len(item.payload)
        super()._put(item)

    def _get(self) -> Event:
        item: Event = super()._get()
        if isinstance(item, Message):
            self._waiting_bytes -= len(item.payload)
            if item.acknowledge is not _nothing:
                self._unacknowledged -= 1
                item.acknowledge()
        return item
