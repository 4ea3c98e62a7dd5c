"""The devices of one federation in virtual time: the state machine of each, and what it has free when."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from distreal_edge.device import DeviceRounds
from distreal_edge.device.rounds import OfferUpdate, Send, Train
from distreal_edge.simulate.training import Training
from distreal_edge.simulate.world import world_of
from distreal_edge.transport import Ack, BlobReference, chunk_count

if TYPE_CHECKING:
    from distreal_edge.device import Trace
    from distreal_edge.simulate.rivals import Rival
    from distreal_edge.simulate.scenario import Scenario
    from distreal_edge.simulate.training import Trained
    from distreal_edge.transport import Manifest

__all__ = ["Fleet", "reference_of"]


def reference_of(data: bytes) -> BlobReference:
    """Return how a manifest names these bytes."""
    return BlobReference(hashlib.sha256(data).hexdigest(), len(data), chunk_count(len(data)))


class Fleet:
    """All devices of a scenario under one strategy, by number. They know the table before the first round."""

    def __init__(self, scenario: Scenario, rival: Rival) -> None:
        """Begin with devices that are connected and idle."""
        self.world = world_of(scenario)
        self._scenario = scenario
        self._rival = rival
        self._machines: dict[int, DeviceRounds] = {}
        self._traces: dict[int, Trace] = {}

    def takes_part(self, device: int, now_s: float) -> bool:
        """Return whether the strategy would have this device train now."""
        if self._rival.unlimited:
            return True
        if device not in self._traces:
            self._traces[device] = self.world.trace(device)
        cores = self._traces[device].at(now_s)
        # What a mini-batch can use of them, see `Speed`: each thread needs most of a core.
        usable = min(cores, float(max(1, round(cores))))
        return self._rival.takes_part(usable / self.world.need_cores(device))

    def begin(self, device: int, manifest: Manifest, model: bytes, opened_s: float) -> Training | None:
        """Have a device hear of its work and fetch the model; return its training, None when that comes too late."""
        machine = self._machines.get(device)
        if machine is None:
            machine = self._machines[device] = DeviceRounds(self.world.name(device))
            machine.connected(opened_s)
        machine.announced(manifest, opened_s, live=True)
        start_s = opened_s + self.world.download_s(manifest.model.bytes)
        if not any(isinstance(action, Train) for action in machine.blobs_complete(start_s)):
            return None
        return Training(self._scenario, self._rival.name, manifest, model, device, opened_s, start_s)

    def give_up(self, task: Training, trained: Trained) -> None:
        """Note that what a device trained is not worth sending."""
        self._machines[task.device].trained(None, trained.end_s)

    def send(self, task: Training, trained: Trained) -> float:
        """Have a device send what it trained; return when that arrives."""
        actions = self._machines[task.device].trained(trained.header.uid, trained.end_s)
        assert any(isinstance(action, OfferUpdate) for action in actions)
        return trained.end_s + self.world.upload_s(len(trained.update))

    def answer(self, trained: Trained, device: int, time_s: float, *, late: bool = False) -> None:
        """Have the aggregator take an update in, and say that it is safe, or too late."""
        machine, uid = self._machines[device], trained.header.uid
        actions = machine.acknowledged(Ack(uid, "resend", None, (0,)), time_s)
        assert any(isinstance(action, Send) for action in actions)
        machine.sent(uid, time_s)
        machine.acknowledged(Ack(uid, "refused", "late") if late else Ack(uid, "durable", None), time_s)
