"""The topics of a federation: how each is written, and what an incoming one means.

Topics are `distreal/1/<federation>/...`; `docs/protocol.md` lists them with their quality of service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from distreal_edge.errors import ConfigError, ProtocolError
from distreal_edge.transport.chunks import GROUP_CHUNKS, MOST_CHUNKS

__all__ = [
    "NAME_PATTERN",
    "PROTOCOL",
    "AggregatorTopic",
    "BlobTopic",
    "DeviceTopic",
    "RoundTopic",
    "Topic",
    "Topics",
    "UpdateTopic",
    "check_name",
]

PROTOCOL: Final = 1
"""The version of the protocol that is spoken here; it is part of every topic."""
NAME_PATTERN: Final = r"\A[A-Za-z0-9_-]{1,64}\Z"
DIGEST_PATTERN: Final = r"\A[0-9a-f]{64}\Z"
_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(DIGEST_PATTERN)
_INDEX = re.compile(r"\A(0|[1-9][0-9]{0,9})\Z")

AggregatorKind = Literal["state", "health"]
DeviceKind = Literal["state", "health", "want", "offer", "ack"]


@dataclass(frozen=True, slots=True)
class AggregatorTopic:
    """`aggregator/state` or `aggregator/health`."""

    kind: AggregatorKind


@dataclass(frozen=True, slots=True)
class RoundTopic:
    """`round`: the manifest."""


@dataclass(frozen=True, slots=True)
class BlobTopic:
    """`blob/<digest>/<group>/<index>`: one chunk of a model or table."""

    digest: str
    index: int


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """`device/<device>/<kind>`."""

    device: str
    kind: DeviceKind


@dataclass(frozen=True, slots=True)
class UpdateTopic:
    """`device/<device>/update/<uid>/<index>`: one chunk of an update."""

    device: str
    uid: str
    index: int


Topic: TypeAlias = AggregatorTopic | RoundTopic | BlobTopic | DeviceTopic | UpdateTopic


def check_name(name: str, what: str) -> str:
    """Return `name` if it can stand in a topic, else raise ConfigError; `what` says whose name it is."""
    if not _NAME.match(name):
        raise ConfigError(f"{what} {name!r}: use 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return name


def _check_index(index: int) -> int:
    if not 0 <= index < MOST_CHUNKS:
        raise ConfigError(f"chunk index {index}: must be from 0 to {MOST_CHUNKS - 1}")
    return index


def _check_digest(digest: str) -> str:
    if not _DIGEST.match(digest):
        raise ConfigError(f"digest {digest!r}: must be a SHA-256 in 64 lower-case hexadecimal digits")
    return digest


@dataclass(frozen=True, slots=True)
class Topics:
    """Write and read the topics of one federation; a name that cannot stand in a topic raises ConfigError."""

    federation: str

    def __post_init__(self) -> None:
        check_name(self.federation, "federation")

    @property
    def prefix(self) -> str:
        """What every topic of this federation starts with, slash included."""
        return f"distreal/{PROTOCOL}/{self.federation}/"

    @property
    def aggregator_state(self) -> str:
        """Retained, will: AggregatorState."""
        return f"{self.prefix}aggregator/state"

    @property
    def aggregator_states(self) -> str:
        """The filter of the aggregator's state in whatever version of the protocol."""
        return f"distreal/+/{self.federation}/aggregator/state"

    def is_aggregator_state(self, topic: str) -> bool:
        """Say whether `aggregator_states` fits a topic."""
        levels = topic.split("/")
        return len(levels) == 5 and levels[0] == "distreal" and levels[2:] == [self.federation, "aggregator", "state"]

    @property
    def aggregator_health(self) -> str:
        """Retained: AggregatorHealth."""
        return f"{self.prefix}aggregator/health"

    @property
    def round(self) -> str:
        """Retained: Manifest."""
        return f"{self.prefix}round"

    @property
    def everything(self) -> str:
        """The filter of the whole federation."""
        return f"{self.prefix}#"

    @property
    def all_blobs(self) -> str:
        """The filter of every chunk of every blob."""
        return f"{self.prefix}blob/+/+/+"

    def blob_group(self, group: int) -> str:
        """Return the filter of a group of chunks, of whatever blob: what a device subscribes to while it wants some."""
        return f"{self.prefix}blob/+/{group}/+"

    @property
    def device_states(self) -> str:
        """The filter of every device's state."""
        return f"{self.prefix}device/+/state"

    @property
    def device_healths(self) -> str:
        """The filter of every device's health."""
        return f"{self.prefix}device/+/health"

    @property
    def wants(self) -> str:
        """The filter of what devices ask for."""
        return f"{self.prefix}device/+/want"

    @property
    def offers(self) -> str:
        """The filter of the updates that devices offer."""
        return f"{self.prefix}device/+/offer"

    @property
    def updates(self) -> str:
        """The filter of every chunk of every update."""
        return f"{self.prefix}device/+/update/+/+"

    def blob(self, digest: str, index: int) -> str:
        """Not retained: one frame of a model or table."""
        return f"{self.prefix}blob/{_check_digest(digest)}/{_check_index(index) // GROUP_CHUNKS}/{index}"

    def device_state(self, device: str) -> str:
        """Retained, will: DeviceState."""
        return self._device(device, "state")

    def device_health(self, device: str) -> str:
        """Retained: DeviceHealth."""
        return self._device(device, "health")

    def want(self, device: str) -> str:
        """Not retained, from the device: Want."""
        return self._device(device, "want")

    def offer(self, device: str) -> str:
        """Not retained, from the device: Offer."""
        return self._device(device, "offer")

    def ack(self, device: str) -> str:
        """Not retained, from the aggregator: Ack."""
        return self._device(device, "ack")

    def update(self, device: str, uid: str, index: int) -> str:
        """Not retained, from the device: one frame of an update."""
        return f"{self._device(device, 'update')}/{check_name(uid, 'update uid')}/{_check_index(index)}"

    def _device(self, device: str, leaf: str) -> str:
        return f"{self.prefix}device/{check_name(device, 'device')}/{leaf}"

    def parse(self, topic: str) -> Topic:
        """Say what an incoming topic means; raise ProtocolError for one that is not of this federation's protocol."""
        if not topic.startswith(self.prefix):
            raise ProtocolError(f"topic {topic[:200]!r}: does not belong to federation {self.federation!r}")
        match topic.removeprefix(self.prefix).split("/"):
            case ["round"]:
                return RoundTopic()
            case ["aggregator", ("state" | "health") as kind]:
                return AggregatorTopic("state" if kind == "state" else "health")
            case ["blob", digest, group, index] if _DIGEST.match(digest):
                found = BlobTopic(digest, _index(index, topic))
                if group == str(found.index // GROUP_CHUNKS):
                    return found
            case ["device", device, kind] if _NAME.match(device):
                for known in get_args(DeviceKind):
                    if kind == known:
                        return DeviceTopic(device, known)
            case ["device", device, "update", uid, index] if _NAME.match(device) and _NAME.match(uid):
                return UpdateTopic(device, uid, _index(index, topic))
        raise ProtocolError(f"topic {topic[:200]!r}: is none of protocol version 1")


def _index(text: str, topic: str) -> int:
    if not _INDEX.match(text) or int(text) >= MOST_CHUNKS:
        raise ProtocolError(f"topic {topic[:200]!r}: {text[:20]!r} is no chunk index from 0 to {MOST_CHUNKS - 1}")
    return int(text)
