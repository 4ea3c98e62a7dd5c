"""What a service manager hears, by the protocol of sd_notify(3), from a socket of its own."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from distreal_edge.cli.notify import Service, Watchdog, notify, watchdog_interval_s
from distreal_edge.pulse import Pulse, Sign

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_S = 30.0


class Manager:
    """The manager's end of the socket."""

    def __init__(self, receiver: socket.socket) -> None:
        self._receiver = receiver

    def heard(self) -> str:
        return self._receiver.recv(4096).decode()

    def hears_nothing_more(self) -> bool:
        self._receiver.setblocking(False)
        try:
            self._receiver.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self._receiver.settimeout(WAIT_S)
        return False


@pytest.fixture(params=["a path", "an abstract address"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    name = f"@{secrets.token_hex(8)}" if request.param != "a path" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(WAIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        yield Manager(receiver)


def test_the_first_turn_says_ready_and_later_ones_what_is_new(manager: Manager) -> None:
    with Service(loop_must_turn=True) as service:
        assert manager.hears_nothing_more()
        for status in ("idle", "idle", "training, round 1", "of\nmany\x1blines"):
            service.turn(status)
    assert manager.heard() == "READY=1\nSTATUS=idle"
    assert manager.heard() == "STATUS=training, round 1"
    assert manager.heard() == "STATUS=of?many?lines"
    assert manager.hears_nothing_more()


def test_without_a_manager_nothing_is_sent_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    assert notify("READY=1")
    with Service(loop_must_turn=True) as service:
        service.turn("idle")


def test_ready_is_said_again_until_it_was_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "later"))
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    with Service(loop_must_turn=True) as service, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        service.turn("idle")
        receiver.bind(str(tmp_path / "later"))
        receiver.settimeout(WAIT_S)
        service.turn("idle")
        assert receiver.recv(4096) == b"READY=1\nSTATUS=idle"


def test_the_watchdog_is_fed_while_the_loop_turns(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    with Service(loop_must_turn=True) as service:
        service.turn("idle")
        heard = [manager.heard()]
        while heard.count("WATCHDOG=1") < 3:
            service.turn("idle")
            heard.append(manager.heard())
    assert heard == ["READY=1\nSTATUS=idle", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "8"}, None),  # meant for a parent
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_interval_is_read_where_it_is_for_us(environment: dict[str, str], interval_s: float | None) -> None:
    assert watchdog_interval_s(environment, 7) == interval_s


class ScriptedPulse(Pulse):
    """A pulse that gives one sign after the other."""

    def __init__(self, *signs: Sign | None) -> None:
        super().__init__()
        self._signs = list(signs)

    def sign(self) -> Sign | None:
        return self._signs.pop(0)


def test_it_is_fed_at_half_its_interval_and_looked_after_more_often_while_a_pulse_is_missing() -> None:
    loop = ScriptedPulse(Sign(1), Sign(2), Sign(3), Sign(4), Sign(5))
    trainer = ScriptedPulse(Sign(1, 9), Sign(1, 9), Sign(1, 9), Sign(1, 9, wanting=True), None)
    fed: list[bool] = []
    watchdog = Watchdog([loop, trainer], lambda: fed.append(True), 8.0)
    assert [(watchdog.look(), len(fed)) for _ in range(5)] == [(4.0, 1), (1.0, 1), (1.0, 1), (4.0, 2), (4.0, 3)]


def test_both_must_live_at_once() -> None:
    # Signs are compared with those at the last feed, not with those of the last look.
    loop = ScriptedPulse(Sign(1), Sign(1), Sign(2))
    trainer = ScriptedPulse(Sign(1), Sign(2), Sign(2))
    fed: list[bool] = []
    watchdog = Watchdog([loop, trainer], lambda: fed.append(True), 8.0)
    assert [(watchdog.look(), len(fed)) for _ in range(3)] == [(4.0, 1), (1.0, 1), (4.0, 2)]


def test_a_manager_that_is_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "nobody"))
    assert not notify("STATUS=alone")
