"""Bad updates of every kind, as real offers and frames: each is refused for its reason, and changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
import zstandard

from distreal_edge.aggregator import REASONS, Ledger, Store, average_round
from distreal_edge.aggregator.reception import Reception
from distreal_edge.device import Update, UpdateHeader, encode_update, most_bytes, read_update
from distreal_edge.dropout import Subset
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.transport import (
    CHUNK_BYTES,
    BlobReference,
    FrameReader,
    Manifest,
    Offer,
    Training,
    UpdateTopic,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.transport import Ack

pytestmark = [pytest.mark.chaos]

KEY = "distreal_edge_update"
ROUND = 7
IMAGES = 100
MOST_IMAGES = 3 * IMAGES + 8
DEVICES = tuple(f"pi-{number}" for number in range(4))
HONEST = "pi-honest"


def a_network() -> Network:
    b = PlanBuilder((3, 16, 16))
    value = b.relu(b.batch_norm("bn", b.conv2d("conv1", b.input, 32, kernel=3, padding=1, bias=False)))
    value = b.relu(b.conv2d("conv2", value, 64, kernel=3))
    value = b.relu(b.conv2d("conv3", value, 96, kernel=3))
    return Network.initialise(b.finish(b.linear("fc", b.flatten(b.global_avg_pool(value)), 10)), 0)


@dataclass
class Bad:
    """What is sent, under which offer, and by whom; `frames` None: those of the data."""

    data: bytes
    device: str
    offer: dict[str, Any] = field(default_factory=dict)
    frames: list[bytes] | None = None


class Desk:
    """A round that is open, which asks for updates packed with zstd."""

    def __init__(self, folder: Path) -> None:
        self.network = a_network()
        self.model = hashlib.sha256(self.network.to_bytes()).hexdigest()
        blob = BlobReference(self.model, 1000, 1)
        self.manifest = Manifest(
            number=ROUND, model=blob, table=blob, ceiling=1.0, deadline_s=1010.0, train_until_s=1000.0,
            selected=(*DEVICES, HONEST), seed=0, draw="ordered",
            training=Training(8, 0.1, 0.9, 0.0, 1.0, 3.0, 32, compression="zstd"),
        )  # fmt: skip
        self.ledger, self.store = Ledger(folder / "ledger.sqlite"), Store(folder)
        images = dict.fromkeys(self.manifest.selected, IMAGES)
        self.ledger.open_round(ROUND, b"", 0.0, images)
        self.reception = Reception(self.ledger, self.store, self.network, full_macs=1000)
        self.reception.open(self.manifest, self.network, images)
        self.answered: set[str] = set()
        self.sent = 0

    def update(self, rng: np.random.Generator, device: str, **header: Any) -> Update:
        """Make a sound update: half of the filters were trained in every mini-batch."""
        plan = self.network.plan
        kept = Subset(tuple(np.sort(rng.permutation(size)[: size // 2]) for size in plan.sizes)).mask(plan.sizes)[None]
        changes = {
            name: rng.standard_normal(parameter.shape).astype(np.float32) * parameter.touched(kept[0])
            for name, parameter in plan.parameters.items()
        }
        statistics = {name: rng.random(shape).astype(np.float32) for name, shape in plan.statistics.items()}
        self.sent += 1
        known: dict[str, Any] = {
            "uid": f"u{self.sent}", "device": device, "round": ROUND, "model": self.model, "images": 40,
            "mini_batches": 5, "macs": 500, "loss": 1.0, "statistics_images": 32,
        }  # fmt: skip
        stated = UpdateHeader(**known | header)
        return Update(stated, changes, statistics, kept, np.array([stated.images]))

    def send(self, bad: Bad, uid: str) -> Ack:
        """Offer an update, send the chunks that are asked for, and return the last answer."""
        reader = FrameReader(bad.data)
        offer = Offer(uid, ROUND, self.model, reader.digest, reader.total_bytes, reader.count)
        offer = msgspec.structs.replace(offer, **bad.offer)
        taken = self.reception.offered(bad.device, offer, answered=self.answered)
        frames = split(bad.data) if bad.frames is None else bad.frames
        for index, frame in enumerate(frames):
            if taken is not None and taken.ack.kind != "resend":
                break
            taken = self.reception.take(UpdateTopic(bad.device, uid, index), frame, answered=self.answered)
        if taken is None:
            ((_, taken),) = self.reception.settle()
        if taken.counts:
            self.answered.add(bad.device)
        return taken.ack


def written(update: Update) -> bytes:
    return encode_update(update, "float32", "zstd")


def rewritten(data: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """Spoil an update's tensors or header, by other means than those that wrote it."""
    tensors = dict(safetensors.numpy.load(data))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
    change(tensors, header)
    spoilt: bytes = safetensors.numpy.save(tensors, metadata={KEY: json.dumps(header)})
    return spoilt


def spoilt_value(desk: Desk, rng: np.random.Generator, device: str, value: float) -> Bad:
    update = desk.update(rng, device)
    names = [name for name, change in update.changes.items() if change.any()]
    change = update.changes[str(rng.choice(names))].reshape(-1)
    change[int(rng.choice(np.flatnonzero(change)))] = value
    return Bad(written(update), device)


def wrong_shape(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        count = len(tensors["statistics"]) + int(rng.choice([-3, -1, 1, 5]))
        tensors["statistics"] = np.ones(count, np.float32)

    return Bad(rewritten(written(desk.update(rng, device)), change), device)


def wrong_type(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    name = str(rng.choice(["survivors", "survivor_images", "statistics", "packed_bytes"]))

    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        tensors[name] = tensors[name].astype(np.float64)

    return Bad(rewritten(written(desk.update(rng, device)), change), device)


def other_encoding(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    encoding, compression = [("float32", "none"), ("int8", "zstd"), ("float16", "zstd")][int(rng.integers(3))]
    return Bad(encode_update(desk.update(rng, device), encoding, compression), device)  # type: ignore[arg-type]


def oversized(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    desk.sent += 1
    return Bad(rng.bytes(most_bytes(desk.network.plan) + int(rng.integers(1, CHUNK_BYTES))), device)


def wrong_round(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    number = ROUND + int(rng.integers(1, 1000))
    honest_offer = {} if rng.random() < 0.5 else {"round": number}
    return Bad(written(desk.update(rng, device, round=number)), device, honest_offer)


def replay(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    number = int(rng.integers(1, ROUND))
    honest_offer = {} if rng.random() < 0.5 else {"round": number}
    return Bad(written(desk.update(rng, device, round=number)), device, honest_offer)


def wrong_model(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    return Bad(written(desk.update(rng, device, model=rng.bytes(32).hex())), device)


def too_many_samples(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    match rng.integers(4):
        case 0:
            update = desk.update(rng, device, images=MOST_IMAGES + int(rng.integers(1, 10**6)))
        case 1:
            update = desk.update(rng, device, macs=40 * 1000 + int(rng.integers(1, 10**6)))
        case 2:
            update = desk.update(rng, device, statistics_images=int(rng.integers(33, 1000)))
        case _:
            update = desk.update(rng, device, mini_batches=int(rng.integers(41, 100)))
    return Bad(written(update), device)


def duplicate(desk: Desk, rng: np.random.Generator, _: str) -> Bad:
    return Bad(written(desk.update(rng, HONEST)), HONEST)


def damaged_chunk(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    data = written(desk.update(rng, device))
    frames = split(data)
    place = int(rng.integers(len(frames)))
    frame = bytearray(frames[place])
    match rng.integers(4):
        case 0:
            frame = frame[: -int(rng.integers(1, 50))]
        case 1:
            frame += rng.bytes(int(rng.integers(1, 50)))
        case 2:
            frame[int(rng.integers(0, 60))] ^= 1 << int(rng.integers(8))
        case _:
            frame = bytearray(rng.bytes(len(frame)))
    frames[place] = bytes(frame)
    return Bad(data, device, frames=frames)


def wrong_digest(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        if rng.random() < 0.3:
            header["digest"] = rng.bytes(32).hex()
            return
        sizes = tensors["packed_bytes"]
        last = tensors["packed"][-sizes[-1] :].tobytes()
        block = bytearray(zstandard.ZstdDecompressor().decompress(last))
        places = np.flatnonzero(np.frombuffer(bytes(block), np.float32))
        block[4 * int(rng.choice(places))] ^= 1  # the last bit of a trained change
        frame = zstandard.ZstdCompressor().compress(bytes(block))
        tensors["packed"] = np.concatenate([tensors["packed"][: -sizes[-1]], np.frombuffer(frame, np.uint8)])
        tensors["packed_bytes"] = np.array([*sizes[:-1], len(frame)], np.int32)

    return Bad(rewritten(written(desk.update(rng, device)), change), device)


def not_selected(desk: Desk, rng: np.random.Generator, _: str) -> Bad:
    stranger = f"stranger-{rng.integers(1000)}"
    return Bad(written(desk.update(rng, stranger)), stranger)


def bomb(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    def change(tensors: dict[str, Any], header: dict[str, Any]) -> None:
        sizes = tensors["packed_bytes"]
        frame = zstandard.ZstdCompressor(write_content_size=bool(rng.random() < 0.5)).compress(
            bytes(int(rng.integers(2**20, 2**26)))
        )
        tensors["packed"] = np.concatenate([np.frombuffer(frame, np.uint8), tensors["packed"][sizes[0] :]])
        tensors["packed_bytes"] = np.array([len(frame), *sizes[1:]], np.int32)

    return Bad(rewritten(written(desk.update(rng, device)), change), device)


def untrained(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    update = desk.update(rng, device)
    change = update.changes["conv2.weight"].reshape(-1)
    change[int(rng.choice(np.flatnonzero(change == 0)))] = 1e-6
    return Bad(written(update), device)


def another_device(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    header = {"uid": "another"} if rng.random() < 0.5 else {}
    update = desk.update(rng, device if header else "somebody-else", **header)
    return Bad(written(update), device)


def no_update(desk: Desk, rng: np.random.Generator, device: str) -> Bad:
    data = written(desk.update(rng, device))
    match rng.integers(3):
        case 0:
            data = rng.bytes(int(rng.integers(1, 10_000)))
        case 1:
            data = data[: int(rng.integers(1, len(data)))]
        case _:
            data += rng.bytes(int(rng.integers(1, 100)))
    return Bad(data, device)


BAD: dict[str, tuple[str, Callable[[Desk, np.random.Generator, str], Bad]]] = {
    "NaN": ("finite", lambda desk, rng, device: spoilt_value(desk, rng, device, np.nan)),
    "infinity": ("finite", lambda desk, rng, device: spoilt_value(desk, rng, device, np.inf * rng.choice([-1, 1]))),
    "wrong shape": ("shape", wrong_shape),
    "wrong type": ("type", wrong_type),
    "another encoding": ("type", other_encoding),
    "oversized": ("size", oversized),
    "a round to come": ("round", wrong_round),
    "replay of an old one": ("late", replay),
    "another model": ("model", wrong_model),
    "too many samples": ("samples", too_many_samples),
    "duplicate": ("duplicate", duplicate),
    "damaged chunk": ("chunk", damaged_chunk),
    "wrong digest": ("digest", wrong_digest),
    "not selected": ("selection", not_selected),
    "bomb": ("size", bomb),
    "changes of what was not trained": ("untrained", untrained),
    "somebody else's": ("identity", another_device),
    "no update at all": ("form", no_update),
}  # fmt: skip


def test_bad_updates_are_refused_for_their_reasons_and_leave_the_model_as_it_is(
    tmp_path: Path, times: Callable[[int, int], int], figure: Callable[[str, str, str], None]
) -> None:
    desk, each = Desk(tmp_path), times(5, 100)
    rng = np.random.default_rng(0)
    honest = desk.update(rng, HONEST)
    assert desk.send(Bad(written(honest), HONEST), honest.header.uid).kind == "durable"
    before = desk.network.to_bytes()
    expected = average_round(desk.network, [read_update(written(honest), desk.network.plan)], "touch")
    reasons: Counter[str] = Counter()
    for number in range(each):
        for way, (reason, make) in BAD.items():
            bad = make(desk, rng, DEVICES[number % len(DEVICES)])
            ack = desk.send(bad, f"u{desk.sent}")
            assert (ack.kind, str(ack.reason).partition(":")[0]) == ("refused", reason), (way, ack)
            reasons[reason] += 1
    assert desk.ledger.refusals() == reasons
    assert set(reasons) == set(REASONS)
    assert desk.network.to_bytes() == before
    stored = [desk.store.update_path(each.device, each.uid) for each in desk.ledger.updates(ROUND)]
    assert [path.name.partition(".")[0] for path in stored] == [HONEST]
    after = average_round(desk.network, [read_update(path, desk.network.plan) for path in stored], "touch")
    assert after.network.to_bytes() == expected.network.to_bytes()
    desk.ledger.__exit__()
    figure(
        f"{len(BAD)} kinds of bad update, {each} of each",
        f"{reasons.total()} of {len(BAD) * each} refused with the right reason, model bit-identical",
        "all refused with the right reason, model bit-identical",
    )
