"""Updates from their first chunk to their answer: put together, checked, stored, noted; in this order, or refused."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distreal_edge.aggregator.inbound import Inbound
from distreal_edge.aggregator.ledger import Decision, StoredUpdate
from distreal_edge.aggregator.rounds import staleness
from distreal_edge.aggregator.validation import check_late, check_sender, check_task, check_update, reason_of
from distreal_edge.device import most_bytes, read_update
from distreal_edge.errors import FullDiskError, ProtocolError, StateError
from distreal_edge.transport import Ack, DiskError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from distreal_edge.aggregator.ledger import Ledger
    from distreal_edge.aggregator.store import Store
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest, Offer, UpdateTopic

__all__ = ["Reception", "Taken"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to a device, and whether it is about an update that counts from now on."""

    ack: Ack
    counts: bool = False


class Reception:
    """Take updates in for one round after the other.

    Memory is bounded, and the disk by the devices selected: of others, and between rounds, nothing is kept. A full disk
    is told in the log, and the device gets no answer: it offers the update again.

    An update that is sound and whole is answered by `settle`, together with all others since the last time: the syncs
    of folder and ledger are most of what an update takes, and are the same for many as for one.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        network: Network,
        full_macs: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start between rounds. `full_macs` is what a training step of the full network costs per image."""
        self._ledger = ledger
        self._store = store
        self._plan = network.plan
        self._full_macs = full_macs
        self._inbound = Inbound(store.folder / "arriving", most_bytes(network.plan))
        self._network = network
        self._manifest: Manifest | None = None
        self._number = 0  # of the newest round
        self._announced: Mapping[str, int] = {}
        self._clock = clock
        self._whole: dict[str, StoredUpdate] = {}  # by device, stored and not noted yet
        self._trouble = ""

    def open(self, manifest: Manifest, network: Network, announced_images: Mapping[str, int]) -> None:
        """Take updates of this network for this round from now on; `announced_images` are those of who is selected."""
        self._manifest, self._network, self._announced = manifest, network, announced_images
        self._number = manifest.number
        self._inbound.clear(keep=manifest.selected)

    def close(self) -> list[tuple[str, Ack]]:
        """Take none until the next round; return the answers to those of which only a part has come.

        What is whole is to be settled before.
        """
        assert not self._whole
        self._manifest = None
        late = ProtocolError("late: the round closed before all of it had come")
        answers = [(device, self._refuse(device, uid, late)) for device, uid in self._inbound.arriving()]
        self._inbound.clear()
        return answers

    def offered(self, device: str, offer: Offer, *, answered: Collection[str]) -> Taken | None:
        """Answer an offer: durable, refused, or what is missing.

        None when the answer comes later: the disk has no room for it, so many others send that it has to wait for its
        turn, or it is there already and to be settled. `answered` are the devices whose updates count in this round
        already. An update that is answered with `durable` is on the disk, and noted in the ledger.
        """
        if self._waits(device, offer.uid):
            return None
        known = self._answered_before(device, offer.uid)
        if known is not None:
            return known
        try:
            check_late(offer.round, self._manifest)  # before what matters in the open round only
            manifest = self._check_sender(device, answered)
            check_task(offer.round, offer.model, manifest)
            # A kill between storing and noting it left a file that no row names.
            stored = self._store.update_path(device, offer.uid)
            if _holds(stored, offer):
                self._take_in(device, offer.uid, stored, offer.digest, manifest)
                return None
            missing = self._inbound.offered(device, offer, self._clock())
            return self._asked(offer.uid, missing) if missing else self._finish(device, offer.uid)
        except ProtocolError as error:
            return Taken(self._refuse(device, offer.uid, error, offer.round))
        except (DiskError, FullDiskError) as error:
            self._tell(error)
            return None

    def take(self, topic: UpdateTopic, frame: bytes, *, answered: Collection[str]) -> Taken | None:
        """Take in a chunk; return the answer or what to ask for next, or None as long as there is nothing to say."""
        device, uid = topic.device, topic.uid
        if self._waits(device, uid):
            return None
        if not self._inbound.known(device, uid):
            return self._answered_before(device, uid) or self._asked(uid, ())
        try:
            self._check_sender(device, answered)
            missing = self._inbound.add(topic, frame, self._clock())
            self._trouble = ""
            return self._asked(uid, missing) if missing else self._finish(device, uid)
        except ProtocolError as error:
            return Taken(self._refuse(device, uid, error))
        except (DiskError, FullDiskError) as error:
            self._tell(error)
            return None

    @property
    def unsettled(self) -> str:
        """Why something that is whole is not durable yet; empty when nothing is."""
        return self._trouble if self._whole else ""

    def turns(self) -> list[tuple[str, Taken]]:
        """Return what to ask devices for that have waited for others to be through."""
        return [(device, self._asked(uid, missing)) for device, uid, missing in self._inbound.turns(self._clock())]

    def settle(self) -> list[tuple[str, Taken]]:
        """Make durable, and note in the ledger, what has come whole since the last call; return the answers to that.

        What the disk has no room for stays to be settled, and is `unsettled`.
        """
        if not self._whole:
            return []
        try:
            self._store.sync_updates()
            with self._ledger.at_once():
                for stored in self._whole.values():
                    self._ledger.store_update(stored)
        except (DiskError, FullDiskError) as error:
            self._tell(error)
            return []
        self._trouble = ""
        whole, self._whole = self._whole, {}
        return [(device, Taken(Ack(stored.uid, "durable", None), counts=True)) for device, stored in whole.items()]

    def _waits(self, device: str, uid: str) -> bool:
        """Return whether this update is here, and its answer yet to come."""
        return device in self._whole and self._whole[device].uid == uid

    def _check_sender(self, device: str, answered: Collection[str]) -> Manifest:
        answered = self._whole if device in self._whole else answered
        return check_sender(device, manifest=self._manifest, selected=self._announced, answered=answered)

    @staticmethod
    def _asked(uid: str, missing: tuple[int, ...]) -> Taken:
        return Taken(Ack(uid, "resend", None, missing))

    def _answered_before(self, device: str, uid: str) -> Taken | None:
        if self._ledger.has_update(uid, device):  # acknowledged before, but the device did not hear it
            return Taken(Ack(uid, "durable", None))
        refused = self._inbound.refused(device, uid)
        return None if refused is None else Taken(refused)

    def _finish(self, device: str, uid: str) -> Taken | None:
        """See whether an update is complete, and take it in if so."""
        if self._inbound.incomplete(device):
            return None
        part = self._inbound.whole(device)
        if part is None:
            missing = self._inbound.missing(device, self._clock())
            return self._asked(uid, missing) if missing else None
        assert self._manifest is not None
        stored = self._store.update_path(device, uid)
        self._take_in(device, uid, part.path, part.digest, self._manifest, lambda: part.move(stored, durably=False))
        return None

    def _take_in(
        self,
        device: str,
        uid: str,
        path: Path,
        digest: str,
        manifest: Manifest,
        store: Callable[[], None] = lambda: None,
    ) -> None:
        """Check a file whose SHA-256 is known, have it stored, and leave it to be settled."""
        update = read_update(path, self._plan)
        check_update(
            update,
            manifest=manifest,
            device=device,
            uid=uid,
            announced_images=self._announced.get(device, 0),
            weights=self._network.weights,
            full_macs=self._full_macs,
        )
        # A kill before it is settled leaves a file that no row names, and a device that has no answer: it offers again.
        store()
        self._inbound.forget(device)
        self._whole[device] = StoredUpdate(uid, manifest.number, device, digest)
        _log.info(
            "round %d: %s answered, %s in %s",
            manifest.number,
            device,
            count_of(update.header.images, "image"),
            count_of(update.header.mini_batches, "mini-batch", "mini-batches"),
        )

    def _tell(self, error: StateError) -> None:
        # Once, not for every chunk.
        if str(error) != self._trouble:
            self._trouble = str(error)
            _log.error("%s", error)

    def _refuse(self, device: str, uid: str, error: ProtocolError, of_round: int | None = None) -> Ack:
        ack = self._inbound.refuse(device, uid, str(error))
        reason = reason_of(error)
        done = self._number - (self._manifest is not None)
        stale = staleness(of_round, done=done) if reason == "late" else None
        refused = Decision(time.time(), self._number, device, "refused", ack.reason or reason)
        try:
            self._ledger.count_refusal(reason, refused, stale=stale)
        except FullDiskError as full:  # what is refused is not kept, so that it is no more than a count that is lost
            self._tell(full)
        _log.warning("refused an update of %s: %s", device, ack.reason)
        return ack


def _holds(path: Path, offer: Offer) -> bool:
    """Say whether a file is what is offered."""
    try:
        if path.stat().st_size != offer.bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == offer.digest
    except OSError:
        return False
