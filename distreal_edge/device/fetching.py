"""Asking for the chunks of model and table, and being sent those that were asked for and no others."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from distreal_edge.errors import TransportError
from distreal_edge.transport import encode

if TYPE_CHECKING:
    from distreal_edge.device.blobs import Blobs
    from distreal_edge.transport import Session, Topics

__all__ = ["Fetching"]

_log = logging.getLogger(__name__)


class Fetching:
    """Keep a device subscribed to the groups of chunks that it has asked for.

    What others ask for meanwhile does not come here, and so does not wait at the broker for a device that is slow.
    """

    def __init__(self, session: Session, topics: Topics, device: str, blobs: Blobs) -> None:
        """Ask for nothing yet."""
        self._session = session
        self._topics = topics
        self._device = device
        self._blobs = blobs
        self._groups: frozenset[int] = frozenset()
        self._again = True

    def ask_again(self) -> None:
        """Note that what was asked for will not come any more."""
        self._again = True

    def serve(self, *, wanting: bool) -> None:
        """Ask for what is missing, as long as something is wanted; call it in every turn of the loop."""
        wants = self._blobs.wanted(again=self._again) if wanting else ()
        self._again = not wanting
        groups = self._blobs.groups if wanting else frozenset()
        new, old = groups - self._groups, self._groups - groups
        self._groups = groups
        # In this order, as the broker takes it: subscribed before a chunk that was asked for is published.
        if new:
            self._session.subscribe(*(self._topics.blob_group(group) for group in sorted(new)))
        for want in wants:
            try:
                self._session.publish(self._topics.want(self._device), encode(want))
            except TransportError as error:
                _log.warning("%s", error)
        if old:
            self._session.unsubscribe(*(self._topics.blob_group(group) for group in sorted(old)))
