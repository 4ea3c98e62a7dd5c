"""What a scenario stands for: the network, the images of each device and of the aggregator, each device's board."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from distreal_edge.aggregator import HeldOut
from distreal_edge.config import build_network
from distreal_edge.data import load_dataset, shard_indices, split_off
from distreal_edge.simulate.resources import make_trace

if TYPE_CHECKING:
    from distreal_edge.data import Dataset
    from distreal_edge.data.dataset import Indices, Split
    from distreal_edge.device import Trace
    from distreal_edge.network import Network
    from distreal_edge.simulate.scenario import Scenario

__all__ = ["World", "world_of"]

_MARGIN = 1.15
"""A device that just trains the full network is so much faster: pace leaves a little of every round unused."""
_MEGABIT = 125_000.0
_LEAST_WINDOW = 0.01
"""Of a round is left for training, however long a model takes to arrive."""
_LEAST_SHARE = 1 / 16
"""A network for all has at least this share of the MACs, or nobody would choose it."""


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """A scenario, made. Every process makes its own, from the same file and seed."""

    scenario: Scenario
    network: Network
    full_macs: int
    train: Dataset
    shards: tuple[Indices, ...]
    held_out: HeldOut

    def name(self, device: int) -> str:
        """Return a device's name."""
        return f"device-{device}"

    def images(self, device: int) -> Dataset:
        """Return a device's images."""
        return self.train.take(self.shards[device])

    def batch(self, device: int) -> int:
        """Return the images of a device's mini-batch: no more than it has."""
        return min(self.scenario.training.batch, len(self.shards[device]))

    def planned(self, device: int) -> int:
        """Return how many mini-batches a device plans in a round, as the trainer does."""
        return max(1, round(self.scenario.training.epochs * len(self.shards[device]) / self.batch(device)))

    def overhead_macs(self, device: int) -> float:
        """Return what a mini-batch takes on this device whatever it trains, in multiply-accumulates."""
        return self.scenario.devices.overhead * self.full_macs * self.batch(device)

    def macs_per_s(self, device: int) -> float:
        """Return how many multiply-accumulates a core of this device does in a second."""
        return self.scenario.devices.macs_per_s or self._needed_macs_per_s(device)

    def need_cores(self, device: int) -> float:
        """Return the cores with which this device just trains the full network on all that it plans."""
        return self._needed_macs_per_s(device) / self.macs_per_s(device)

    def _needed_macs_per_s(self, device: int) -> float:
        rounds = self.scenario.rounds
        window_s = rounds.seconds - rounds.upload_seconds - self.download_s(self.model_bytes)
        needed = self.planned(device) * (self.full_macs * self.batch(device) + self.overhead_macs(device))
        return _MARGIN * needed / max(window_s, _LEAST_WINDOW * rounds.seconds)

    @property
    def small_share(self) -> float:
        """The share of the full network's MACs that the weakest device can train on all that it plans."""
        scenario, overhead = self.scenario, self.scenario.devices.overhead
        neediest = max(self.need_cores(device) for device in range(scenario.devices.number))
        affordable = scenario.availability.weakest / neediest * (1.0 + overhead) - overhead
        return scenario.small or min(1.0, max(_LEAST_SHARE, affordable))

    @property
    def model_bytes(self) -> int:
        """About how many bytes a model has on the wire."""
        return sum(tensor.nbytes for tensor in self.network.weights.values())

    def download_s(self, size: int) -> float:
        """Return how long so many bytes take to a device, after it has asked for them."""
        link = self.scenario.link
        return 2.0 * link.latency_s + size / (link.download_mbit_per_s * _MEGABIT)

    def upload_s(self, size: int) -> float:
        """Return how long so many bytes take to the aggregator, the offer before them included."""
        link = self.scenario.link
        return 3.0 * link.latency_s + size / (link.upload_mbit_per_s * _MEGABIT)

    def trace(self, device: int) -> Trace:
        """Return what a device has free over virtual time."""
        return make_trace(
            self.scenario.availability,
            device,
            seed=self.scenario.seed,
            every_s=self.scenario.rounds.seconds,
            horizon_s=self.scenario.last_s,
        )


@cache
def world_of(scenario: Scenario) -> World:
    """Make what a scenario stands for; raise an error of ours where it cannot be made."""
    network = build_network(scenario.network)
    data = scenario.data
    root = None if data.root is None else Path(data.root).expanduser().absolute()
    train = _dataset(data.name, root, "train")
    if data.images is not None and data.images < len(train):
        _, chosen = split_off(len(train), data.images, scenario.seed + 1)
        train = train.take(chosen)
    rest, calibration = split_off(len(train), data.calibration_images, scenario.seed)
    writers = None if train.writers is None else train.writers[rest]
    parts = shard_indices(
        train.labels[rest],
        kind=data.kind,
        shards=scenario.devices.number,
        seed=scenario.seed,
        alpha=data.alpha,
        writers=writers,
        smallest=data.smallest,
    )
    test = _dataset(data.name, root, "test")
    held_out = HeldOut(test.take(range(min(data.test_images, len(test)))), train.take(calibration))
    held_out.check(network)
    full_macs = network.cost([0.0] * len(network.groups)).macs
    return World(scenario, network, full_macs, train, tuple(rest[part] for part in parts), held_out)


@cache
def _dataset(name: str, root: Path | None, split: Split) -> Dataset:
    # Worlds of several seeds share the images.
    return load_dataset(name, root=root, split=split)
