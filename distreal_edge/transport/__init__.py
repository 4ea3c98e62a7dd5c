"""MQTT between devices and the aggregator: topics, messages, chunks, the session, and a broker to go with a demo."""

from __future__ import annotations

from distreal_edge.transport.chunks import (
    CHUNK_BYTES,
    FRAME_BYTES,
    GROUP_CHUNKS,
    LARGEST_BLOB_BYTES,
    FrameReader,
    Progress,
    chunk_count,
    split,
)
from distreal_edge.transport.delivery import Delivery
from distreal_edge.transport.embedded_broker import EmbeddedBroker
from distreal_edge.transport.inbox import Connected, Disconnected, Event, Message
from distreal_edge.transport.messages import (
    MOST_WANTED,
    Ack,
    AggregatorHealth,
    AggregatorState,
    AnyAggregatorState,
    BlobReference,
    DeviceHealth,
    DeviceState,
    Manifest,
    Offer,
    Training,
    Want,
    decode,
    encode,
)
from distreal_edge.transport.numbering import SessionNumbers
from distreal_edge.transport.parts import DiskError, PartialBlob
from distreal_edge.transport.session import Session
from distreal_edge.transport.tls import TlsFiles
from distreal_edge.transport.topics import (
    PROTOCOL,
    AggregatorTopic,
    BlobTopic,
    DeviceTopic,
    RoundTopic,
    Topic,
    Topics,
    UpdateTopic,
    check_name,
)

__all__ = [
    "CHUNK_BYTES",
    "FRAME_BYTES",
    "GROUP_CHUNKS",
    "LARGEST_BLOB_BYTES",
    "MOST_WANTED",
    "PROTOCOL",
    "Ack",
    "AggregatorHealth",
    "AggregatorState",
    "AggregatorTopic",
    "AnyAggregatorState",
    "BlobReference",
    "BlobTopic",
    "Connected",
    "Delivery",
    "DeviceHealth",
    "DeviceState",
    "DeviceTopic",
    "Disconnected",
    "DiskError",
    "EmbeddedBroker",
    "Event",
    "FrameReader",
    "Manifest",
    "Message",
    "Offer",
    "PartialBlob",
    "Progress",
    "RoundTopic",
    "Session",
    "SessionNumbers",
    "TlsFiles",
    "Topic",
    "Topics",
    "Training",
    "UpdateTopic",
    "Want",
    "check_name",
    "chunk_count",
    "decode",
    "encode",
    "split",
]
