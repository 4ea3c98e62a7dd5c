from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.errors import ConfigError, ProtocolError
from distreal_edge.transport.topics import (
    AggregatorTopic,
    BlobTopic,
    DeviceTopic,
    RoundTopic,
    Topics,
    UpdateTopic,
)

names = st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z")
digests = st.from_regex(r"\A[0-9a-f]{64}\Z")
indices = st.integers(0, 4095)
DIGEST = "ab" * 32


def test_topics_read_as_the_design_page_has_them() -> None:
    topics = Topics("kitchen")
    assert topics.aggregator_state == "distreal/1/kitchen/aggregator/state"
    assert topics.aggregator_health == "distreal/1/kitchen/aggregator/health"
    assert topics.round == "distreal/1/kitchen/round"
    assert topics.blob(DIGEST, 7) == f"distreal/1/kitchen/blob/{DIGEST}/0/7"
    assert topics.device_state("pi-1") == "distreal/1/kitchen/device/pi-1/state"
    assert topics.device_health("pi-1") == "distreal/1/kitchen/device/pi-1/health"
    assert topics.want("pi-1") == "distreal/1/kitchen/device/pi-1/want"
    assert topics.update("pi-1", "u_1", 0) == "distreal/1/kitchen/device/pi-1/update/u_1/0"
    assert topics.offer("pi-1") == "distreal/1/kitchen/device/pi-1/offer"
    assert topics.blob(DIGEST, 17) == f"distreal/1/kitchen/blob/{DIGEST}/2/17"
    assert topics.blob_group(2) == "distreal/1/kitchen/blob/+/2/+"
    assert topics.ack("pi-1") == "distreal/1/kitchen/device/pi-1/ack"


@given(federation=names, device=names, uid=names, digest=digests, index=indices)
def test_what_is_written_reads_back(federation: str, device: str, uid: str, digest: str, index: int) -> None:
    topics = Topics(federation)
    assert topics.parse(topics.aggregator_state) == AggregatorTopic("state")
    assert topics.parse(topics.aggregator_health) == AggregatorTopic("health")
    assert topics.parse(topics.round) == RoundTopic()
    assert topics.parse(topics.blob(digest, index)) == BlobTopic(digest, index)
    assert topics.parse(topics.device_state(device)) == DeviceTopic(device, "state")
    assert topics.parse(topics.device_health(device)) == DeviceTopic(device, "health")
    assert topics.parse(topics.want(device)) == DeviceTopic(device, "want")
    assert topics.parse(topics.offer(device)) == DeviceTopic(device, "offer")
    assert topics.parse(topics.ack(device)) == DeviceTopic(device, "ack")
    assert topics.parse(topics.update(device, uid, index)) == UpdateTopic(device, uid, index)


@given(topic=st.text() | st.text("abdeu/+#0123456789").map("distreal/1/f/".__add__))
def test_any_other_topic_is_a_protocol_error(topic: str) -> None:
    topics = Topics("f")
    if topic == "distreal/1/f/round":
        assert topics.parse(topic) == RoundTopic()
    else:
        with pytest.raises(ProtocolError, match="topic"):
            topics.parse(topic)


@pytest.mark.parametrize(
    "topic",
    [
        "distreal/1/other/round",
        "distreal/2/kitchen/round",
        "distreal/1/kitchen/rounds",
        "distreal/1/kitchen/round/",
        "distreal/1/kitchen/aggregator/ack",
        "distreal/1/kitchen/device/a b/state",
        "distreal/1/kitchen/device//state",
        "distreal/1/kitchen/device/a/state\n",
        "distreal/1/kitchen/device/a/update/u/01",
        "distreal/1/kitchen/device/a/update/u/-1",
        "distreal/1/kitchen/device/a/update/u/4096",
        "distreal/1/kitchen/device/a/update/u/٣",
        f"distreal/1/kitchen/blob/{DIGEST.upper()}/0/0",
        f"distreal/1/kitchen/blob/{DIGEST[:-1]}/0/0",
        f"distreal/1/kitchen/blob/{DIGEST}/0",
        f"distreal/1/kitchen/blob/{DIGEST}/0/8",
        f"distreal/1/kitchen/blob/{DIGEST}/01/8",
    ],
)
def test_a_topic_that_is_nearly_right_is_refused(topic: str) -> None:
    with pytest.raises(ProtocolError, match="topic"):
        Topics("kitchen").parse(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "ä", "a" * 65, "a\n"])
def test_a_name_that_cannot_stand_in_a_topic_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="characters"):
        Topics(name)
    with pytest.raises(ConfigError, match="characters"):
        Topics("kitchen").device_state(name)
    with pytest.raises(ConfigError, match="characters"):
        Topics("kitchen").update("pi-1", name, 0)


@pytest.mark.parametrize(
    ("topic", "fits"),
    [
        ("distreal/1/kitchen/aggregator/state", True),
        ("distreal/2/kitchen/aggregator/state", True),
        ("distreal/1/garden/aggregator/state", False),
        ("distreal/1/kitchen/aggregator/health", False),
        ("distreal/1/kitchen/aggregator/state/x", False),
        ("other/1/kitchen/aggregator/state", False),
    ],
)
def test_the_aggregator_of_every_version_is_recognised(topic: str, fits: bool) -> None:
    assert Topics("kitchen").is_aggregator_state(topic) == fits
    assert Topics("kitchen").aggregator_states == "distreal/+/kitchen/aggregator/state"
