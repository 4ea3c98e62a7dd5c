from __future__ import annotations

from typing import Any

from distreal_edge.aggregator.presence import Presence
from distreal_edge.transport import DeviceState


def state(kind: Any, session: int) -> DeviceState:
    return DeviceState(kind, session, 10, "test")


def test_the_will_of_an_older_connection_does_not_count() -> None:
    presence = Presence()
    assert presence.counts("pi", state("idle", 5))
    assert presence.counts("pi", state("idle", 6))
    assert not presence.counts("pi", state("offline", 5))
    assert presence.counts("pi", state("offline", 6))
    assert presence.counts("pi", state("offline", 6))


def test_a_device_whose_state_folder_was_wiped_is_there_all_the_same() -> None:
    presence = Presence()
    assert presence.counts("pi", state("idle", 1000))
    assert presence.counts("pi", state("training", 3))
    assert presence.counts("pi", state("offline", 3))


def test_devices_do_not_speak_for_each_other() -> None:
    presence = Presence()
    presence.counts("a", state("idle", 9))
    assert presence.counts("b", state("offline", 1))
