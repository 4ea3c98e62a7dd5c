"""Updates on their way in: put together on the disk, asked for a few chunks at a time, refusals remembered."""

from __future__ import annotations

import re
import shutil
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distreal_edge.durable import make_folder
from distreal_edge.errors import ProtocolError, StateError, printable
from distreal_edge.transport import CHUNK_BYTES, Ack, DiskError, PartialBlob

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from distreal_edge.transport import Offer, UpdateTopic

__all__ = ["Inbound"]

MOST_AT_ONCE = 8
"""Chunks that one device is asked for at once: 2 MiB."""
MOST_IN_ALL = 32
"""Chunks that all devices together are asked for at once: what the broker may have to keep. Others wait their turn."""
PATIENCE_S = 10.0
"""Whoever was asked and sent nothing for so long keeps others waiting no more: it may be gone."""
SPARE_BYTES = 64 * 2**20
"""What is to be left on the disk for the ledger, models and the system."""
_MOST_REFUSALS = 10_000
_MOST_CHARACTERS = 500
_NAME = re.compile(r"([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)\.part(\.log)?")


@dataclass(slots=True)
class _Arriving:
    uid: str
    part: PartialBlob
    asked: set[int] = field(default_factory=set)


class Inbound:
    """At most one arriving update per device, in a file of its own; a new one takes the place of an unfinished one.

    What an earlier process left of an update is taken up when it is offered again. Devices are asked for so many chunks
    that the broker holds a bounded number of them, however many devices send and however slow we are: those that come
    when others send already are asked later, in the order in which they came. Times are of any clock that does not go
    back.
    """

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        """Make the folder if need be; no update has more than `cap_bytes`. Raises `StateError`."""
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._arriving: dict[str, _Arriving] = {}
        self._asked: dict[str, float] = {}  # devices that chunks are asked of, and when they moved last
        self._waiting: dict[str, None] = {}  # devices that nothing is asked of yet, in their order
        self._left: dict[str, list[Path]] = {}  # files of an earlier process, by device
        self._refused: OrderedDict[str, Ack] = OrderedDict()
        make_folder(folder)

    def offered(self, device: str, offer: Offer, now: float) -> tuple[int, ...]:
        """Make room for an update; return the chunks to ask for now, none when it is all there or has to wait.

        Raises `ProtocolError` for one that is too large, `DiskError` when the disk is full or refuses.
        """
        if offer.bytes > self._cap_bytes:
            raise ProtocolError(
                f"size: {offer.bytes} bytes are more than the {self._cap_bytes} that an update of this network can have"
            )
        arriving = self._arriving.get(device)
        if (
            arriving is None
            or (arriving.uid, arriving.part.digest, arriving.part.total_bytes)
            != (offer.uid, offer.digest, offer.bytes)
        ):  # fmt: skip
            arriving = self._begin(device, offer)
        arriving.asked.clear()
        self._asked.pop(device, None)
        return self._ask(device, now)

    def add(self, topic: UpdateTopic, frame: bytes, now: float) -> tuple[int, ...]:
        """Take a chunk in of an update that is `known`; return the chunks to ask for now.

        Raises `ProtocolError` for a chunk that is damaged or contradicts the others, `DiskError` for the disk's sake.
        """
        arriving = self._arriving[topic.device]
        try:
            arriving.part.add(frame, index=topic.index, where=f"update {topic.uid} of {topic.device}")
        except ProtocolError as error:
            raise ProtocolError(f"chunk: {error}") from None
        finally:
            arriving.asked.discard(topic.index)
            self._moved(topic.device, now)
        return self._ask(topic.device, now) if len(arriving.asked) <= self._share // 2 else ()

    def turns(self, now: float) -> list[tuple[str, str, tuple[int, ...]]]:
        """Return whose turn it is now: device and uid, and the chunks to ask for."""
        for device in [device for device, moved_s in self._asked.items() if now - moved_s > PATIENCE_S]:
            del self._asked[device]
        found = []
        while self._waiting and self._room > 0:
            device = next(iter(self._waiting))
            del self._waiting[device]
            if asked := self._ask(device, now):
                found.append((device, self._arriving[device].uid, asked))
        return found

    def incomplete(self, device: str) -> bool:
        """Return whether chunks of a device's update are still to come."""
        return bool(self._arriving[device].part.missing)

    def whole(self, device: str) -> PartialBlob | None:
        """Return a device's update once all of it is there and as it was announced.

        Chunks that the disk has changed are missing again then. Raises `ProtocolError` when it never was what was
        announced, `DiskError` for the disk's sake.
        """
        part = self._arriving[device].part
        try:
            return part if part.is_whole() else None
        except ProtocolError as error:
            raise ProtocolError(f"chunk: {error}") from None

    def missing(self, device: str, now: float) -> tuple[int, ...]:
        """Return the chunks to ask a device for now; none when it has to wait."""
        return self._ask(device, now)

    def known(self, device: str, uid: str) -> bool:
        """Return whether chunks of this update are taken in."""
        return device in self._arriving and self._arriving[device].uid == uid

    def forget(self, device: str) -> None:
        """Note that a device's update was moved away, or is not wanted; what is left of it is removed."""
        arriving = self._arriving.pop(device, None)
        self._asked.pop(device, None)
        self._waiting.pop(device, None)
        if arriving is not None:
            arriving.part.discard()

    def refuse(self, device: str, uid: str, reason: str) -> Ack:
        """Drop what has come of an update, remember that it is refused, and return the answer.

        The refusal of a device's newest update is remembered, because the rest of its chunks may be on their way.
        """
        if self.known(device, uid):
            self.forget(device)
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

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove what there is of updates of other devices than these, also what an earlier process left."""
        for device in [device for device in self._arriving if device not in keep]:
            self.forget(device)
        self._left.clear()
        try:
            for path in self._folder.iterdir():
                device = path.name.partition(".")[0]
                if not _NAME.fullmatch(path.name) or device in self._arriving:
                    continue
                if device in keep:
                    self._left.setdefault(device, []).append(path)
                else:
                    path.unlink()
        except OSError as error:
            raise StateError(f"{self._folder}: cannot be cleared: {error.strerror}; check its owner") from None

    @property
    def _share(self) -> int:
        return max(1, min(MOST_AT_ONCE, MOST_IN_ALL // max(1, len(self._arriving))))

    @property
    def _room(self) -> int:
        return MOST_IN_ALL - sum(len(self._arriving[device].asked) for device in self._asked)

    def _ask(self, device: str, now: float) -> tuple[int, ...]:
        arriving = self._arriving[device]
        room = min(self._share - len(arriving.asked), self._room)
        wanted = [index for index in arriving.part.missing if index not in arriving.asked]
        chosen = tuple(wanted[: max(0, room)])
        arriving.asked.update(chosen)
        if chosen:
            self._waiting.pop(device, None)
            self._asked[device] = now
        elif wanted and not arriving.asked:
            self._waiting.setdefault(device)
        return chosen

    def _moved(self, device: str, now: float) -> None:
        if not self._arriving[device].asked:
            self._asked.pop(device, None)
        elif device in self._asked:
            self._asked[device] = now

    def _begin(self, device: str, offer: Offer) -> _Arriving:
        self.forget(device)
        self._remove_others(device, offer.uid)
        path = self._folder / f"{device}.{offer.uid}.part"
        part = PartialBlob(path, digest=offer.digest, total_bytes=offer.bytes)
        free_bytes = shutil.disk_usage(self._folder).free
        if free_bytes < min(offer.bytes, len(part.missing) * CHUNK_BYTES) + SPARE_BYTES:
            raise DiskError(
                f"{self._folder}: the disk has {free_bytes / 2**20:.0f} MiB left, {SPARE_BYTES / 2**20:.0f} of them "
                f"kept free, and the update of {device} has {offer.bytes / 2**20:.1f}; make room, and it comes again"
            )
        self._arriving[device] = arriving = _Arriving(offer.uid, part)
        return arriving

    def _remove_others(self, device: str, uid: str) -> None:
        for path in self._left.pop(device, ()):
            if path.name.split(".")[1] != uid:
                path.unlink(missing_ok=True)
