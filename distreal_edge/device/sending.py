"""Offering updates, and sending the chunks of one that the aggregator asks for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from distreal_edge.device.upload import Upload
from distreal_edge.errors import ProtocolError, StateError, TransportError
from distreal_edge.transport import encode

if TYPE_CHECKING:
    from distreal_edge.device.spool import Spool
    from distreal_edge.transport import Session, Topics

__all__ = ["Sending"]

_log = logging.getLogger(__name__)


class Sending:
    """One update on its way at a time: another one that is offered takes its place."""

    def __init__(self, session: Session, topics: Topics, device: str, spool: Spool) -> None:
        """Send nothing yet."""
        self._session = session
        self._topics = topics
        self._device = device
        self._spool = spool
        self._upload: Upload | None = None

    @property
    def busy(self) -> bool:
        """Whether chunks are on their way."""
        return self._upload is not None and self._upload.busy

    def offer(self, uid: str) -> bool:
        """Offer an update; return False when it is not in the spool any more, or cannot be read."""
        try:
            if self._upload is None or self._upload.uid != uid:
                path = self._spool.path(uid)
                if path is None:
                    raise FileNotFoundError(2, "not in the spool any more")
                self._upload = Upload(
                    uid,
                    path,
                    lambda index, frame: self._session.publish(self._topics.update(self._device, uid, index), frame),
                )
            offer = self._upload.offer()
        except (OSError, ProtocolError) as error:
            _log.warning("update %s cannot be sent: %s", uid, error)
            self._upload = None
            return False
        try:
            self._session.publish(self._topics.offer(self._device), encode(offer))
        except TransportError as error:
            _log.warning("%s", error)
        return True

    def ask(self, uid: str, missing: tuple[int, ...]) -> None:
        """Send these chunks, if it is this update that is on its way."""
        if self._upload is not None and self._upload.uid == uid:
            self._upload.ask(missing)

    def forget(self, uid: str) -> None:
        """Send nothing more of an update."""
        if self._upload is not None and self._upload.uid == uid:
            self._upload = None

    def cut_off(self) -> None:
        """Note that the connection is lost, and with it what was on its way."""
        self._upload = None

    def advance(self) -> tuple[str, bool] | None:
        """Hand chunks over; once that has come to an end return of which update, and whether all were taken."""
        upload = self._upload
        if upload is None or not upload.busy:
            return None
        try:
            return (upload.uid, True) if upload.advance() else None
        except (TransportError, ProtocolError, StateError, OSError) as error:
            _log.warning("update %s was not sent whole: %s", upload.uid, error)
            self._upload = None
            return (upload.uid, False)
