from __future__ import annotations

import json

import pytest

from distreal_edge.device.belonging import PATIENCE_S, Belonging
from distreal_edge.errors import TransportError
from distreal_edge.transport import AggregatorState, Topics, encode

TOPICS = Topics("garden")
LATER = f"distreal/2/{TOPICS.federation}/aggregator/state"
OURS = encode(AggregatorState("online", 1, "garden"))
GONE = encode(AggregatorState("offline", 1, "garden"))


def newer(state: str = "online") -> bytes:
    return json.dumps({"state": state, "federation": "garden", "protocol": 2, "novelty": [1]}).encode()


@pytest.fixture
def belonging() -> Belonging:
    return Belonging(TOPICS)


def test_our_own_aggregator_is_no_reason_to_end(belonging: Belonging) -> None:
    belonging.heard(TOPICS.aggregator_state, OURS, 0.0)
    belonging.heard(TOPICS.aggregator_state, GONE, 1.0)
    belonging.check(100.0)


def test_an_aggregator_of_another_federation_ends_the_device(belonging: Belonging) -> None:
    belonging.heard(TOPICS.aggregator_state, encode(AggregatorState("online", 1, "kitchen")), 0.0)
    with pytest.raises(TransportError, match="is of federation 'kitchen', this device of 'garden'"):
        belonging.check(PATIENCE_S)


def test_an_aggregator_of_another_version_ends_the_device_when_none_of_ours_is_there(belonging: Belonging) -> None:
    belonging.heard(LATER, newer(), 0.0)
    belonging.check(0.9 * PATIENCE_S)
    with pytest.raises(TransportError, match="speaks version 2 of the protocol, this program version 1"):
        belonging.check(PATIENCE_S)


@pytest.mark.parametrize("first", ["ours", "newer"])
def test_an_aggregator_of_another_version_beside_ours_does_not(belonging: Belonging, first: str) -> None:
    said = [(TOPICS.aggregator_state, OURS), (LATER, newer())]
    for topic, payload in said if first == "ours" else reversed(said):
        belonging.heard(topic, payload, 0.0)
    belonging.check(100.0)


@pytest.mark.parametrize("payload", [b"", b"\xff", b"{}", newer("offline"), b"[" * 5000])
def test_what_says_nothing_changes_nothing(belonging: Belonging, payload: bytes) -> None:
    belonging.heard(LATER, payload, 0.0)
    belonging.check(100.0)
