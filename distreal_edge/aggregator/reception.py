"""Updates from their first chunk to their answer: put together, checked, stored, noted; in this order, or refused."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distreal_edge.aggregator.inbound import Inbound
from distreal_edge.aggregator.ledger import StoredUpdate
from distreal_edge.aggregator.validation import check_sender, check_update, reason_of
from distreal_edge.device import most_bytes, read_update
from distreal_edge.errors import ProtocolError
from distreal_edge.transport import Ack

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from distreal_edge.aggregator.ledger import Ledger
    from distreal_edge.aggregator.store import Store
    from distreal_edge.device import UpdateReader
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest, UpdateTopic

__all__ = ["Reception", "Taken"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a chunk: the answer to its device, and whether it completed an update that counts now."""

    ack: Ack
    counts: bool = False


class Reception:
    """Take updates in for one round after the other.

    Memory is bounded by the devices selected: of others, and between rounds, nothing is kept. Times are of any clock
    that does not go back.
    """

    def __init__(self, ledger: Ledger, store: Store, network: Network, full_macs: int) -> None:
        """Start between rounds. `full_macs` is what a training step of the full network costs per image."""
        self._ledger = ledger
        self._store = store
        self._plan = network.plan
        self._full_macs = full_macs
        self._inbound = Inbound(most_bytes(network.plan))
        self._network = network
        self._manifest: Manifest | None = None
        self._announced: Mapping[str, int] = {}

    def open(self, manifest: Manifest, network: Network, announced_images: Mapping[str, int]) -> None:
        """Take updates of this network for this round from now on."""
        self._manifest, self._network, self._announced = manifest, network, announced_images

    def close(self) -> list[tuple[str, Ack]]:
        """Take none until the next round; return the answers to those of which only a part has come."""
        self._manifest = None
        late = ProtocolError("late: the round closed before all of it had come")
        return [(device, self._refuse(device, uid, late)) for device, uid in self._inbound.arriving()]

    def quiet(self, now: float) -> list[tuple[str, Ack]]:
        """Return whom to ask for missing chunks."""
        return self._inbound.quiet(now)

    def take(self, topic: UpdateTopic, frame: bytes, *, answered: Collection[str], now: float) -> Taken | None:
        """Take in a chunk and return the answer, or None while others are missing.

        `answered` are the devices whose updates count in this round already. An update that is answered with `durable`
        is on the disk, and noted in the ledger.
        """
        device, uid = topic.device, topic.uid
        if self._ledger.has_update(uid, device):  # acknowledged before, but the device did not hear it
            return Taken(Ack(uid, "durable", None))
        refused = self._inbound.refused(device, uid)
        if refused is not None:
            return Taken(refused)
        try:
            manifest = check_sender(device, manifest=self._manifest, answered=answered)
            data = self._inbound.add(topic, frame, now)
            if data is None:
                return None
            update = read_update(data, self._plan)
            self._check(update, topic, manifest)
        except ProtocolError as error:
            return Taken(self._refuse(device, uid, error))
        # A kill between the two leaves a file that no row names, and a device that has no answer and sends it again.
        self._store.save_update(device, uid, data)
        self._ledger.store_update(StoredUpdate(uid, manifest.number, device))
        _log.info(
            "round %d: %s answered, %d images in %d mini-batches",
            manifest.number,
            device,
            update.header.images,
            update.header.mini_batches,
        )
        return Taken(Ack(uid, "durable", None), counts=True)

    def _check(self, update: UpdateReader, topic: UpdateTopic, manifest: Manifest) -> None:
        check_update(
            update,
            manifest=manifest,
            device=topic.device,
            uid=topic.uid,
            announced_images=self._announced.get(topic.device, 0),
            weights=self._network.weights,
            full_macs=self._full_macs,
        )

    def _refuse(self, device: str, uid: str, error: ProtocolError) -> Ack:
        ack = self._inbound.refuse(device, uid, str(error))
        self._ledger.count_refusal(reason_of(error))
        _log.warning("refused an update of %s: %s", device, ack.reason)
        return ack
