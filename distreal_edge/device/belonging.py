"""Whether the aggregator that is heard is this device's: of its federation, and of its version of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.errors import ProtocolError, TransportError, printable
from distreal_edge.transport import PROTOCOL, AnyAggregatorState, decode

if TYPE_CHECKING:
    from distreal_edge.transport import Topics

__all__ = ["Belonging"]

PATIENCE_S = 3.0
"""After an aggregator of another version, one of ours may still be heard: both are there while a federation changes."""


class Belonging:
    """Listen to every version's aggregator of a federation's name. Times are of any clock that does not go back."""

    def __init__(self, topics: Topics) -> None:
        """Know nothing."""
        self._topics = topics
        self._strange: str | None = None
        self._since_s = 0.0
        self._ours = False

    def heard(self, topic: str, payload: bytes, now: float) -> None:
        """Take in the state of an aggregator; what cannot be read tells nothing."""
        try:
            told = decode(AnyAggregatorState, payload, where=topic)
        except ProtocolError:
            return
        here = topic == self._topics.aggregator_state
        strange = self._judge(told) if told.state == "online" else None
        if here:
            self._ours = told.state == "online" and strange is None
        if strange is not None:
            self._strange, self._since_s = strange, now
        elif here and self._ours:
            self._strange = None

    def check(self, now: float) -> None:
        """Raise TransportError when only an aggregator that is not ours is there."""
        if self._strange is not None and not self._ours and now - self._since_s >= PATIENCE_S:
            raise TransportError(self._strange)

    def _judge(self, told: AnyAggregatorState) -> str | None:
        if told.federation != self._topics.federation:
            return (
                f"the aggregator at this broker is of federation {printable(told.federation[:64])!r}, this device of "
                f"{self._topics.federation!r}; check federation in the configuration, and the broker's host and port"
            )
        if told.protocol != PROTOCOL:
            return (
                f"the aggregator of {self._topics.federation!r} speaks version {told.protocol} of the protocol, this "
                f"program version {PROTOCOL}; install the same release of distreal-edge on both"
            )
        return None
