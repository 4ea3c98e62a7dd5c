"""Small networks of every kind, updates of them made by chance or by a fault, and a device that plays from a script."""

from __future__ import annotations

import hashlib
import queue
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
import pytest

from distreal_edge.aggregator import Lesson, RoundSettings
from distreal_edge.data import Dataset
from distreal_edge.device import Update, UpdateHeader, encode_update
from distreal_edge.dropout import Draws, Subset
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search import uniform_table
from distreal_edge.transport import (
    MOST_WANTED,
    Ack,
    AggregatorHealth,
    AggregatorTopic,
    BlobReference,
    BlobTopic,
    DeviceState,
    DeviceTopic,
    EmbeddedBroker,
    FrameReader,
    Manifest,
    Message,
    Offer,
    RoundTopic,
    Session,
    Topics,
    Training,
    Want,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from distreal_edge.dropout import Table

WAIT_S = 20.0


def plain(builder: PlanBuilder) -> str:
    value = builder.relu(builder.batch_norm("bn1", builder.conv2d("conv1", builder.input, 4, kernel=3, padding=1)))
    value = builder.relu(builder.conv2d("conv2", builder.max_pool(value, kernel=2, stride=2), 5, kernel=3))
    return builder.linear("fc", builder.flatten(value), 3)


def residual(builder: PlanBuilder) -> str:
    stream = builder.batch_norm("bn1", builder.conv2d("conv1", builder.input, 4, kernel=3, padding=1, bias=False))
    inner = builder.relu(builder.conv2d("inner", stream, 6, kernel=3, padding=1))
    stream = builder.add(stream, builder.conv2d("outer", inner, 4, kernel=1))
    return builder.linear("fc", builder.flatten(builder.global_avg_pool(stream)), 3)


def depthwise(builder: PlanBuilder) -> str:
    value = builder.relu(builder.conv2d("wide", builder.input, 6, kernel=1))
    value = builder.conv2d("depthwise", value, 6, kernel=3, padding=1, groups=6)
    value = builder.conv2d("narrow", builder.relu6(value), 3, kernel=1)
    return builder.linear("fc", builder.flatten(value), 3)


def grouped(builder: PlanBuilder) -> str:
    value = builder.conv2d("conv1", builder.input, 4, kernel=1)
    value = builder.conv2d("grouped", value, 6, kernel=3, padding=1, groups=2)
    return builder.linear("fc", builder.flatten(builder.global_avg_pool(builder.relu(value))), 3)


def linear(builder: PlanBuilder) -> str:
    value = builder.batch_norm("bn", builder.linear("fc1", builder.flatten(builder.input), 5))
    return builder.linear("fc2", builder.relu(value), 3)


def concatenated(builder: PlanBuilder) -> str:
    left = builder.conv2d("left", builder.input, 3, kernel=1)
    right = builder.conv2d("right", builder.input, 4, kernel=3, padding=1)
    value = builder.conv2d("both", builder.relu(builder.concat(left, right)), 3, kernel=1)
    return builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), 3)


KINDS: dict[str, Callable[[PlanBuilder], str]] = {
    function.__name__: function for function in (plain, residual, depthwise, grouped, linear, concatenated)
}


def build(kind: str, seed: int = 0) -> Network:
    builder = PlanBuilder((2, 6, 6))
    return Network.initialise(builder.finish(KINDS[kind](builder)), seed)


@pytest.fixture(scope="session")
def network_of() -> Callable[..., Network]:
    """Make a small network of a kind, for images of [2, 6, 6] and 3 classes."""
    return build


@pytest.fixture(scope="session")
def kinds() -> tuple[str, ...]:
    return tuple(KINDS)


@pytest.fixture
def network() -> Network:
    return build("plain")


@pytest.fixture
def table(network: Network) -> Table:
    return uniform_table(network, rows=3)


# One mini-batch as a device runs it: the survivors it trained, and on how many images.
Log = list[tuple[Subset, int]]


@dataclass
class Maker:
    """Make sound updates by chance, together with the log of mini-batches that they stand for."""

    network: Network
    rng: np.random.Generator

    def log(self, policy: str, steps: int, rates: Sequence[float] = (0.0, 0.3, 0.6, 0.9), round_number: int = 1) -> Log:
        sizes = self.network.plan.sizes
        draws = Draws(policy, sizes, (int(self.rng.integers(1000)),), round_number)
        made: Log = []
        for _ in range(steps):
            rate = float(self.rng.choice(np.asarray(rates)))
            counts = [max(1, round((1.0 - rate) * size)) for size in sizes]
            made.append((draws(counts), int(self.rng.integers(1, 40))))
        return made

    def update(self, log: Log, **header: Any) -> Update:
        plan = self.network.plan
        masks = np.array([subset.mask(plan.sizes) for subset, _ in log], dtype=np.bool_).reshape(-1, plan.filters + 1)
        touched = {
            name: np.broadcast_to(
                np.any([parameter.touched(mask) for mask in masks], axis=0) if len(masks) else np.False_,
                parameter.shape,
            )
            for name, parameter in plan.parameters.items()
        }
        changes = {
            name: np.where(touched[name], self.rng.normal(size=parameter.shape), 0.0).astype(np.float32)
            for name, parameter in plan.parameters.items()
        }
        known = {
            "uid": self.rng.bytes(16).hex(),
            "device": "pi-1",
            "round": 1,
            "model": hashlib.sha256(self.network.to_bytes()).hexdigest(),
            "images": sum(images for _, images in log),
            "mini_batches": len(log),
            "loss": 1.5 if log else None,
        }
        statistics: dict[str, NDArray[np.float32]] = {}
        if header.get("statistics_images"):
            statistics = {
                name: np.abs(self.rng.normal(size=shape)).astype(np.float32) for name, shape in plan.statistics.items()
            }
        images = np.array([images for _, images in log], dtype=np.int64)
        return Update(UpdateHeader(**{**known, **header}), changes, statistics, masks, images)


@pytest.fixture(scope="session")
def maker_of() -> Callable[..., Maker]:
    def make(network: Network, seed: int = 0) -> Maker:
        return Maker(network, np.random.default_rng(seed))

    return make


@pytest.fixture
def maker(network: Network) -> Maker:
    return Maker(network, np.random.default_rng(0))


@pytest.fixture
def settings() -> RoundSettings:
    return RoundSettings(number=2, seconds=10.0, upload_seconds=2.0, least_devices=1, devices_per_round=None, seed=0)


@pytest.fixture
def lesson() -> Lesson:
    return Lesson(
        batch=8,
        lr=0.1,
        final_lr=None,
        momentum=0.9,
        weight_decay=0.0,
        epochs=1.0,
        most_epochs=3.0,
        statistics_images=32,
        average="touch",
        ceilings=((0.0, 1.0),),
    )


def reference(data: bytes) -> BlobReference:
    reader = FrameReader(data)
    return BlobReference(reader.digest, reader.total_bytes, reader.count)


@pytest.fixture
def manifest_of(table: Table) -> Callable[..., Manifest]:
    """Make the manifest of a round that trains a network, with fields changed."""

    def make(network: Network, **changed: Any) -> Manifest:
        known = Manifest(
            number=1,
            model=reference(network.to_bytes()),
            table=reference(table.to_bytes()),
            ceiling=1.0,
            deadline_s=1010.0,
            train_until_s=1008.0,
            selected=("pi-1", "pi-2", "pi-3"),
            seed=0,
            draw="ordered",
            training=Training(8, 0.1, 0.9, 0.0, 1.0, 3.0, 32),
        )
        return msgspec.structs.replace(known, **changed)

    return make


def images_by_chance(count: int, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, size=(count, 2, 6, 6), dtype=np.uint8)
    return Dataset(images, rng.integers(0, 3, size=count), 3, name="noise")


@pytest.fixture(scope="session")
def images_of() -> Callable[..., Dataset]:
    """Make a dataset of noise."""
    return images_by_chance


# -- over a broker ----------------------------------------------------------------------------------------------------


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as started:
        yield started


@dataclass
class Script:
    """A device's session, and what it does one line after the other; every wait is bounded."""

    name: str
    session: Session
    topics: Topics
    whole_of: Callable[[Iterable[bytes]], bytes | None]

    def __enter__(self) -> Self:
        self.session.__enter__()
        self.session.wait_connected(WAIT_S)
        self.blobs: dict[str, list[bytes]] = {}
        self.acks: list[Ack] = []
        self.manifests: list[Manifest] = []
        self.healths: list[AggregatorHealth] = []
        self.chunks: list[tuple[str, int]] = []
        self.session.subscribe(self.topics.round, self.topics.ack(self.name), self.topics.all_blobs).wait(WAIT_S)
        return self

    def __exit__(self, *error: object) -> None:
        self.session.close()

    def say(self, state: str, images: int = 100) -> None:
        payload = encode(DeviceState(state, 1, images, "test"))  # type: ignore[arg-type]
        self.session.publish_retained(self.topics.device_state(self.name), payload).wait(WAIT_S)

    def until(self, done: Callable[[], Any], seconds: float = WAIT_S) -> Any:
        """Take in what comes until `done` says something; fail the test when it does not in time."""
        until_s = time.monotonic() + seconds
        while not (found := done()):
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                pytest.fail(f"{self.name} waited in vain; manifests {self.manifests}, acks {self.acks}")
            try:
                event = self.session.events.get(timeout=left_s)
            except queue.Empty:
                continue
            if isinstance(event, Message):
                self._take(event)
        return found

    def _take(self, message: Message) -> None:
        match self.topics.parse(message.topic):
            case RoundTopic():
                self.manifests.append(decode(Manifest, message.payload, where=message.topic))
            case DeviceTopic(kind="ack"):
                self.acks.append(decode(Ack, message.payload, where=message.topic))
            case AggregatorTopic("health"):
                self.healths.append(decode(AggregatorHealth, message.payload, where=message.topic))
            case BlobTopic(digest, index):
                self.chunks.append((digest, index))
                self.blobs.setdefault(digest, []).append(message.payload)

    def manifest(self, number: int, *, finished: bool = False) -> Manifest:
        def arrived() -> Manifest | None:
            newest = self.manifests[-1:]
            return next((each for each in newest if each.number == number and each.finished == finished), None)

        found: Manifest = self.until(arrived)
        return found

    def blob(self, wanted: BlobReference) -> bytes:
        def arrived() -> bytes | None:
            return self.whole_of(self.blobs.get(wanted.digest, ()))

        if not arrived():
            self.want(wanted.digest, *range(wanted.chunks))
        found: bytes = self.until(arrived)
        return found

    def want(self, digest: str, *indices: int) -> None:
        for first in range(0, len(indices), MOST_WANTED):
            want = Want(digest, indices[first : first + MOST_WANTED])
            self.session.publish(self.topics.want(self.name), encode(want)).wait(WAIT_S)

    def offer(self, uid: str, data: bytes, manifest: Manifest, **changed: Any) -> None:
        reader = FrameReader(data)
        offer = Offer(uid, manifest.number, manifest.model.digest, reader.digest, reader.total_bytes, reader.count)
        payload = encode(msgspec.structs.replace(offer, **changed))
        self.session.publish(self.topics.offer(self.name), payload).wait(WAIT_S)

    def send(self, uid: str, data: bytes, *indices: int, manifest: Manifest | None = None) -> None:
        """Offer an update for the newest round, and send its chunks without waiting for an answer."""
        self.offer(uid, data, manifest or self.manifests[-1])
        for index, frame in FrameReader(data).frames(indices or None):
            self.publish(uid, index, frame)

    def publish(self, uid: str, index: int, frame: bytes) -> None:
        self.session.publish(self.topics.update(self.name, uid, index), frame).wait(WAIT_S)

    def ack(self, uid: str, kind: str) -> Ack:
        found: Ack = self.until(lambda: next((ack for ack in self.acks if (ack.uid, ack.kind) == (uid, kind)), None))
        return found

    def trained(self, manifest: Manifest, *, steps: int = 2, seed: int = 0, **header: Any) -> tuple[str, bytes]:
        """Fetch the round's model and return an update of it, as its uid and its bytes."""
        network = Network.from_bytes(self.blob(manifest.model))
        maker = Maker(network, np.random.default_rng(seed))
        update = maker.update(
            maker.log("ordered", steps),
            **{
                "device": self.name, "round": manifest.number, "model": manifest.model.digest,
                "uid": secrets.token_hex(16), **header,
            },
        )  # fmt: skip
        return update.header.uid, encode_update(update)

    def answer(self, manifest: Manifest, **arguments: Any) -> str:
        """Train, send and wait until the update is durable; return its uid."""
        uid, data = self.trained(manifest, **arguments)
        self.send(uid, data)
        self.ack(uid, "durable")
        return uid


@pytest.fixture
def device_at(whole_of: Callable[[Iterable[bytes]], bytes | None]) -> Iterator[Callable[..., Script]]:
    """Connect scripted devices; all leave after the test."""
    opened: list[Script] = []

    def connect(broker: EmbeddedBroker, name: str = "pi-1", federation: str = "test") -> Script:
        session = Session(host=broker.host, port=broker.port, client_id=name)
        opened.append(Script(name, session, Topics(federation), whole_of).__enter__())
        return opened[-1]

    yield connect
    for script in opened:
        script.__exit__()
