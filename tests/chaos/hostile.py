"""A federation without a broker, some of whose devices are hostile: the code of devices and aggregator in a loop.

Every device trains (`train_round`), writes its update down, and the aggregator reads, checks and averages it. Devices
differ in what they have to spend, so that they train different parts of the network.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from distreal_edge.aggregator import AverageRule, average_round, check_update, evaluate, with_statistics
from distreal_edge.aggregator.evaluation import measure_statistics
from distreal_edge.data import Dataset, load_dataset, shard_indices
from distreal_edge.device import Availability, Ran, Speed, Update, encode_update, read_update, train_round
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search import uniform_table
from distreal_edge.transport import BlobReference, Manifest, Training

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

DEVICES = 10
HOSTILE = (3, 7)
ATTACKS = ("sign flip x10", "noise", "label flip")
CEILINGS = (1.0, 1.0, 0.5, 0.2)
"""What a device has to spend in a round, by chance: shares of the full network's MACs."""


class RestlessBoard:
    """A board that has all it needs, on which time stands still."""

    emulated = False

    def now(self) -> float:
        return 0.0

    def availability(self) -> Availability:
        return Availability(1.0)

    def run(self, work: Callable[[int], float], threads: int, macs: int = 0) -> Ran:
        return Ran(work(1), 1e-6, 1e-6)

    def wait_until(self, time_s: float, stopped: Callable[[], bool]) -> None:
        pass

    def call_at(self, time_s: float, action: Callable[[], object]) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Federation:
    """The images of every device, and those that models are judged by."""

    network: Network
    shards: tuple[Dataset, ...]
    test: Dataset
    calibration: Dataset
    encoding: str = "float32"

    @classmethod
    def make(cls, images: int, test_images: int, alpha: float = 0.5) -> Federation:
        """Share out some of Fashion-MNIST, unevenly: by a Dirichlet distribution for every class."""
        train, test = load_dataset("fashion-mnist", split="train"), load_dataset("fashion-mnist", split="test")
        labels = train.labels[:images]
        parts = shard_indices(labels, kind="dirichlet", shards=DEVICES, seed=1, alpha=alpha, smallest=images // 40)
        return cls(
            small_network(),
            tuple(_part(train, part) for part in parts),
            _part(test, np.arange(test_images)),
            _part(train, np.arange(images, images + 512)),
        )


def small_network() -> Network:
    b = PlanBuilder((1, 28, 28))
    value = b.relu(b.batch_norm("bn1", b.conv2d("conv1", b.input, 12, kernel=3, stride=2, padding=1, bias=False)))
    value = b.relu(b.batch_norm("bn2", b.conv2d("conv2", value, 24, kernel=3, stride=2, padding=1, bias=False)))
    value = b.relu(b.batch_norm("bn3", b.conv2d("conv3", value, 32, kernel=3, padding=1, bias=False)))
    return Network.initialise(b.finish(b.linear("fc", b.flatten(b.max_pool(value, kernel=2, stride=2)), 10)), 0)


def accuracy(
    federation: Federation, rule: AverageRule, *, rounds: int, attack: str | None = None, hostile: bool = True
) -> float:
    """Train and return the accuracy of the last model; the hostile devices attack, or with `hostile` False are away."""
    network = federation.network
    table = uniform_table(network, rows=6)
    speed = Speed(table, {0: 1e-6, len(table.rows) - 1: 1e-6})
    for number in range(1, rounds + 1):
        manifest = _manifest(number, network, federation.encoding)
        readers = []
        for device, shard in enumerate(federation.shards):
            if device in HOSTILE and not hostile:
                continue
            images = shard
            if attack == "label flip" and device in HOSTILE:
                images = Dataset(shard.images, 9 - shard.labels, shard.classes, name="flipped")
            rng = np.random.default_rng((number, device))
            update = train_round(
                manifest=msgspec.structs.replace(manifest, ceiling=float(rng.choice(CEILINGS))),
                network=network, table=table, dataset=images, device=f"pi-{device}", uid=f"u{number}-{device}",
                board=RestlessBoard(), speed=speed, stopped=lambda: False, report=lambda _step: None,
            )  # fmt: skip
            if device in HOSTILE:
                update = _attacked(update, attack, rng)
            data = encode_update(update, federation.encoding, "none")  # type: ignore[arg-type]
            reader = read_update(data, network.plan)
            check_update(
                reader, manifest=manifest, device=f"pi-{device}", uid=f"u{number}-{device}",
                announced_images=len(shard), weights=network.weights, full_macs=table.rows[-1].macs,
            )  # fmt: skip
            readers.append(reader)
        network = average_round(network, readers, rule).network
    measured = measure_statistics(network, federation.calibration, 1)
    if not all(np.isfinite(tensor).all() for tensor in measured.values()):
        return 0.1  # it has diverged, and says the same of every image
    return evaluate(with_statistics(network, measured), federation.test, 1).accuracy


def _attacked(update: Update, attack: str | None, rng: np.random.Generator) -> Update:
    if attack == "sign flip x10":
        changes: dict[str, NDArray[np.float32]] = {name: -10 * change for name, change in update.changes.items()}
    elif attack == "noise":
        changes = {
            name: (rng.standard_normal(change.shape) * 10 * change.std() * (change != 0)).astype(np.float32)
            for name, change in update.changes.items()
        }
    else:
        return update
    return Update(update.header, changes, update.statistics, update.kept, update.kept_images)


def _manifest(number: int, network: Network, encoding: Any) -> Manifest:
    data = network.to_bytes()
    blob = BlobReference(hashlib.sha256(data).hexdigest(), len(data), -(-len(data) // 262144))
    return Manifest(
        number=number, model=blob, table=blob, ceiling=1.0, deadline_s=1010.0, train_until_s=1000.0,
        selected=tuple(f"pi-{device}" for device in range(DEVICES)), seed=0, draw="ordered",
        training=Training(32, 0.05, 0.9, 5e-4, 1.0, 1.0, 0, encoding=encoding),
    )  # fmt: skip


def _part(dataset: Dataset, places: NDArray[np.integer[Any]]) -> Dataset:
    return Dataset(dataset.images[places], dataset.labels[places], dataset.classes, name=dataset.name)
