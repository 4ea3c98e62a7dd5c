"""What became of one packet that was handed to the broker."""

from __future__ import annotations

import threading

from distreal_edge.errors import TransportError

__all__ = ["DELIVERY_TIMEOUT_S", "Delivery"]

DELIVERY_TIMEOUT_S = 30.0


class Delivery:
    """The fate of one publish or subscribe: open, done, or failed. Threads may wait for it.

    Done means that the *broker* has it (quality of service 1) or that it was written to the socket (0). It does not
    mean that anybody else has it, nor that it survives the broker.
    """

    __slots__ = ("_event", "essential", "failure", "what")

    def __init__(self, what: str, *, essential: bool = False) -> None:
        self.what = what
        self.essential = essential
        self.failure: TransportError | None = None
        self._event = threading.Event()

    @property
    def settled(self) -> bool:
        """Whether it is done or failed."""
        return self._event.is_set()

    def wait(self, timeout_s: float = DELIVERY_TIMEOUT_S) -> None:
        """Return when it is done; raise TransportError when it failed, or is still open after `timeout_s`."""
        if not self._event.wait(timeout_s):
            raise TransportError(
                f"{self.what}: the broker did not acknowledge it within {timeout_s:g} s; send it again"
            )
        if self.failure is not None:
            raise self.failure

    def settle(self, failure: TransportError | None = None) -> None:
        """Mark it as done, or failed; the first call decides."""
        if not self._event.is_set():
            self.failure = failure
            self._event.set()
