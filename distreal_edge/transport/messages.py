"""The control messages: what each holds, the limits of every field, and their strict JSON form.

Unknown or missing fields, wrong types, numbers out of bounds and payloads over the size limit are refused. Everything
that arrives is parsed here once, and trusted afterwards.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from distreal_edge.errors import ProtocolError
from distreal_edge.transport.chunks import LARGEST_BLOB_BYTES, MOST_CHUNKS, chunk_count
from distreal_edge.transport.topics import DIGEST_PATTERN, NAME_PATTERN, PROTOCOL
from distreal_edge.words import count_of

__all__ = [
    "LARGEST_CONTROL_BYTES",
    "LARGEST_LIST_BYTES",
    "MOST_WANTED",
    "Ack",
    "AggregatorHealth",
    "AggregatorState",
    "AnyAggregatorState",
    "BlobReference",
    "DeviceHealth",
    "DeviceState",
    "Manifest",
    "Offer",
    "Training",
    "Want",
    "decode",
    "encode",
]

LARGEST_CONTROL_BYTES: Final = 64 * 1024
# Manifests and the aggregator's health list devices, up to 10,000 of them.
LARGEST_LIST_BYTES: Final = 1024 * 1024
MOST_WANTED: Final = 32
"""Chunks that a device may ask for at once: what the broker may have to keep for it."""

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN)]
Names = Annotated[tuple[Name, ...], Meta(max_length=10_000)]
ChunkIndex = Annotated[int, Meta(ge=0, lt=MOST_CHUNKS)]
ChunkIndices = Annotated[tuple[ChunkIndex, ...], Meta(max_length=MOST_CHUNKS)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
SessionNumber = Annotated[int, Meta(ge=1, le=2**53)]
RoundNumber = Annotated[int, Meta(ge=1, le=2**31 - 1)]
UnixSeconds = Annotated[float, Meta(ge=0, le=1e11)]
Share = Annotated[float, Meta(ge=0, le=1)]


class AggregatorState(Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the aggregator is there, and of which federation and protocol; `session` rises with every connection."""

    state: Literal["online", "offline"]
    session: SessionNumber
    federation: Name
    protocol: Annotated[int, Meta(ge=1, le=2**31 - 1)] = PROTOCOL


class AnyAggregatorState(Struct, frozen=True):
    """What the aggregator's state says in every version of the protocol, whatever else there may be in it."""

    state: str
    federation: str
    protocol: int


class DeviceState(Struct, frozen=True, forbid_unknown_fields=True):
    """What a device does; `session` rises with every connection, `images` is how many it can train on."""

    state: Literal["starting", "idle", "training", "uploading", "degraded", "offline"]
    session: SessionNumber
    images: Count
    version: Annotated[str, Meta(max_length=64)]


class DeviceHealth(Struct, frozen=True, forbid_unknown_fields=True):
    """How a device fares: what it can spend, what it chose, how fast it is.

    None means: not known here (`temperature_c`), or no round is being trained (`row`, `round`, `loss`,
    `vector_macs_share`).
    """

    time_s: UnixSeconds
    cores: Annotated[float, Meta(ge=0, le=4096)]
    memory_bytes: Annotated[int, Meta(ge=0, le=2**50)]
    temperature_c: Annotated[float, Meta(ge=-100, le=300)] | None
    row: Annotated[int, Meta(ge=0, le=65_535)] | None
    threads: Annotated[int, Meta(ge=0, le=4096)]
    images_per_s: Annotated[float, Meta(ge=0, le=1e9)]
    spool: Annotated[int, Meta(ge=0, le=1_000_000)]
    round: RoundNumber | None
    mini_batches: Count
    loss: Annotated[float, Meta(ge=-1e38, le=1e38)] | None
    vector_macs_share: Share | None


class AggregatorHealth(Struct, frozen=True, forbid_unknown_fields=True):
    """How the training goes: `round` (0 before the first), how many train, accuracy, who was asked, who answered."""

    time_s: UnixSeconds
    round: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    rounds: RoundNumber
    phase: Literal["waiting", "collecting", "averaging", "evaluating", "finished"]
    accuracy: Share | None
    selected: Names
    answered: Names


def check_chunks(chunks: int, total_bytes: int) -> None:
    """Raise ProtocolError unless so many bytes make so many chunks."""
    if chunks != chunk_count(total_bytes):
        made = f"{count_of(total_bytes, 'byte')} make {count_of(chunk_count(total_bytes), 'chunk')}"
        raise ProtocolError(f"{made}, not {chunks}")


class BlobReference(Struct, frozen=True, forbid_unknown_fields=True):
    """A blob that can be asked for: its SHA-256 in hex, its size, its chunks of 256 KiB."""

    digest: Digest
    bytes: Annotated[int, Meta(ge=1, le=LARGEST_BLOB_BYTES)]
    chunks: Annotated[int, Meta(ge=1, le=MOST_CHUNKS)]

    def __post_init__(self) -> None:
        check_chunks(self.chunks, self.bytes)


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    """How devices train in a round.

    `epochs` over its own images is what a device aims at, `most_epochs` what it may reach with time left over.
    `statistics_images` is how many images a device measures batch-norm statistics on; 0 for none. `encoding` and
    `compression` are how it writes its update down.
    """

    batch: Annotated[int, Meta(ge=1, le=65_536)]
    lr: Annotated[float, Meta(gt=0, le=1000)]
    momentum: Annotated[float, Meta(ge=0, lt=1)]
    weight_decay: Annotated[float, Meta(ge=0, le=10)]
    epochs: Annotated[float, Meta(gt=0, le=10_000)]
    most_epochs: Annotated[float, Meta(gt=0, le=10_000)]
    statistics_images: Annotated[int, Meta(ge=0, le=1_000_000)]
    encoding: Literal["float32", "float16", "int8"] = "float32"
    compression: Literal["none", "zstd"] = "none"

    def __post_init__(self) -> None:
        if self.most_epochs < self.epochs:
            raise ProtocolError(f"most_epochs {self.most_epochs} is less than epochs {self.epochs}")


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """One round: which model and table, how much of the network (`ceiling`, a share of the full MACs), when, by whom.

    Training stops at `train_until_s`, the round closes at `deadline_s` (both Unix time); the seconds between are for
    uploads. `measure_only` asks for batch-norm statistics of the model and nothing else. `finished` says that the
    training is over and that `model` is its result: nobody trains. `devices` is how many the federation has, selected
    or not; 0 when it does not say.
    """

    number: RoundNumber
    model: BlobReference
    table: BlobReference
    ceiling: Annotated[float, Meta(gt=0, le=1)]
    deadline_s: UnixSeconds
    train_until_s: UnixSeconds
    selected: Names
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    draw: Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9_]{0,31}\Z")]
    training: Training
    finished: bool = False
    measure_only: bool = False
    devices: Annotated[int, Meta(ge=0, le=10_000)] = 0

    def __post_init__(self) -> None:
        if self.train_until_s > self.deadline_s:
            raise ProtocolError(f"train_until_s {self.train_until_s} is after deadline_s {self.deadline_s}")
        if len(set(self.selected)) != len(self.selected):
            raise ProtocolError("selected names a device twice")


class Want(Struct, frozen=True, forbid_unknown_fields=True):
    """A device asks for chunks of a blob that it misses."""

    digest: Digest
    missing: Annotated[tuple[ChunkIndex, ...], Meta(min_length=1, max_length=MOST_WANTED)]


class Offer(Struct, frozen=True, forbid_unknown_fields=True):
    """A device has an update for a round: what it is, before a byte of it is sent. `digest` is its SHA-256 in hex."""

    uid: Name
    round: RoundNumber
    model: Digest
    digest: Digest
    bytes: Annotated[int, Meta(ge=1, le=LARGEST_BLOB_BYTES)]
    chunks: Annotated[int, Meta(ge=1, le=MOST_CHUNKS)]

    def __post_init__(self) -> None:
        check_chunks(self.chunks, self.bytes)


class Ack(Struct, frozen=True, forbid_unknown_fields=True):
    """The aggregator's answer to an offer, or to a chunk.

    `durable`: it is stored and will be counted once, the device may forget it. `refused`: it never will be, for
    `reason`; the device may forget it too. `resend`: chunks `missing` have not arrived, and are to be sent now; with
    none named, the aggregator knows nothing of the update, and it is to be offered.
    """

    uid: Name
    kind: Literal["durable", "refused", "resend"]
    reason: Annotated[str, Meta(max_length=500)] | None
    missing: ChunkIndices = ()

    def __post_init__(self) -> None:
        if self.kind == "refused" and not self.reason:
            raise ProtocolError("a refusal must give its reason")
        if self.kind != "resend" and self.missing:
            raise ProtocolError(f"missing chunks go with resend, not with {self.kind}")


Message = TypeVar("Message", bound=Struct)


def _limit_bytes(kind: type[Struct]) -> int:
    return LARGEST_LIST_BYTES if issubclass(kind, (Manifest, AggregatorHealth)) else LARGEST_CONTROL_BYTES


def decode(kind: type[Message], payload: bytes | bytearray | memoryview, *, where: str) -> Message:
    """Parse the JSON of a control message; raise ProtocolError with `where` (the topic) and the path of the fault."""
    limit = _limit_bytes(kind)
    if len(payload) > limit:
        raise ProtocolError(f"{where}: {len(payload)} bytes, a {kind.__name__} has at most {limit}")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{where}: not a {kind.__name__}: {error}") from None
    except RecursionError:
        raise ProtocolError(f"{where}: not a {kind.__name__}: nested too deeply") from None


def encode(message: Struct) -> bytes:
    """Write a control message as JSON; raise ProtocolError if the other side would refuse it (say, a NaN)."""
    payload = msgspec.json.encode(message)
    decode(type(message), payload, where=f"outgoing {type(message).__name__}")
    return payload
