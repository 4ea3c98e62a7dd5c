from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.errors import ConfigError, TransportError
from distreal_edge.transport import (
    Connected,
    Disconnected,
    EmbeddedBroker,
    FrameReader,
    Message,
    Session,
    connection,
)
from distreal_edge.transport import session as session_module
from distreal_edge.transport.inbox import MOST_MESSAGES, ROOM_MESSAGES
from distreal_edge.transport.session import full_jitter_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.transport import Event
    from distreal_edge.transport.embedded_broker import BrokerKind

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 15.0


def test_a_subscriber_gets_what_was_retained_before_and_what_is_published_after(
    broker: EmbeddedBroker, session_to: Callable[..., Session], next_message: Callable[..., Message]
) -> None:
    early, late = session_to(broker, "early"), session_to(broker, "late")
    early.wait_connected(WAIT_S)
    early.publish("f/a/state", b"old", retain=True).wait()
    early.publish("f/a/state", b"new", retain=True).wait()
    late.subscribe("f/+/state")
    assert next_message(late) == Message("f/a/state", b"new", retained=True)
    early.publish("f/b/state", b"live", retain=True).wait()
    assert next_message(late) == Message("f/b/state", b"live", retained=False)


def test_an_empty_payload_clears_what_was_retained(
    broker: EmbeddedBroker, session_to: Callable[..., Session], next_message: Callable[..., Message]
) -> None:
    writer, reader = session_to(broker, "writer"), session_to(broker, "reader")
    writer.wait_connected(WAIT_S)
    writer.publish_retained("f/x", b"1").wait()
    writer.publish_retained("f/x", b"").wait()
    writer.publish_retained("f/y", b"2").wait()
    reader.subscribe("f/+")
    assert next_message(reader).topic == "f/y"


def test_a_session_starts_before_its_broker(
    broker_kind: BrokerKind, free_port: int, next_message: Callable[..., Message]
) -> None:
    with Session(host="127.0.0.1", port=free_port, client_id="early") as session:
        session.subscribe("f/#")
        session.publish_retained("f/x", b"1")
        with pytest.raises(TransportError, match=r"no connection after 0\.3 s.*broker"):
            session.wait_connected(0.3)
        with EmbeddedBroker(kind=broker_kind, port=free_port):
            session.wait_connected(WAIT_S)
            assert next_message(session) == Message("f/x", b"1", retained=False)


@pytest.mark.chaos
def test_after_the_broker_was_killed_everything_is_as_before(
    broker_kind: BrokerKind,
    free_port: int,
    session_to: Callable[..., Session],
    next_event: Callable[..., Event],
    next_message: Callable[..., Message],
) -> None:
    with EmbeddedBroker(kind=broker_kind, port=free_port) as first:
        session = session_to(first, "survivor")
        session.subscribe("f/news")
        session.publish_retained("f/state", b"idle")
        session.publish_retained("f/state", b"training")
        assert isinstance(next_event(session, lambda event: True), Connected)
        os.kill(first.pid, signal.SIGKILL)
        gone = next_event(session, lambda event: isinstance(event, Disconnected))
        assert isinstance(gone, Disconnected)
        assert not gone.final
    with EmbeddedBroker(kind=broker_kind, port=free_port) as second:
        next_event(session, lambda event: isinstance(event, Connected))
        other = session_to(second, "other")
        other.subscribe("f/state")
        assert next_message(other).payload == b"training"
        other.publish("f/news", b"hello").wait()
        assert next_message(session) == Message("f/news", b"hello")


CLIENT = """
import sys, threading
from distreal_edge.transport import Session
port, will = int(sys.argv[1]), {"will_topic": "f/state", "will_payload": b"offline"}
with Session(host="127.0.0.1", port=port, client_id="doomed", **will) as session:
    session.publish_retained("f/state", b"idle")
    threading.Event().wait()
"""


@pytest.mark.chaos
def test_the_will_of_a_killed_client_is_seen_and_retained(
    broker: EmbeddedBroker, session_to: Callable[..., Session], next_message: Callable[..., Message]
) -> None:
    observer = session_to(broker, "observer")
    observer.subscribe("f/state")
    observer.wait_connected(WAIT_S)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(broker.port)], env=environment)
    try:
        assert next_message(observer).payload == b"idle"
    finally:
        client.kill()
        client.wait()
    assert next_message(observer).payload == b"offline"
    late = session_to(broker, "late")
    late.subscribe("f/state")
    assert next_message(late) == Message("f/state", b"offline", retained=True)


def test_leaving_says_what_the_will_would_have_said(
    broker: EmbeddedBroker, session_to: Callable[..., Session], next_message: Callable[..., Message]
) -> None:
    observer = session_to(broker, "observer")
    observer.subscribe("f/state")
    observer.wait_connected(WAIT_S)
    with Session(
        host=broker.host, port=broker.port, client_id="polite", will_topic="f/state", will_payload=b"off"
    ) as session:
        session.publish_retained("f/state", b"on")
        assert next_message(observer).payload == b"on"
    assert next_message(observer).payload == b"off"


def test_a_payload_over_the_limit_is_refused_here_and_the_connection_lives_on(
    broker: EmbeddedBroker, session_to: Callable[..., Session], next_message: Callable[..., Message]
) -> None:
    session = session_to(broker, "big")
    session.subscribe("f/#")
    session.wait_connected(WAIT_S)
    with pytest.raises(TransportError, match="max_packet_size"):
        session.publish("f/x", bytes(2 * 1024 * 1024))
    session.publish("f/x", bytes(2 * 1024 * 1024 - 100)).wait()
    assert len(next_message(session).payload) == 2 * 1024 * 1024 - 100


def test_a_blob_arrives_frame_by_frame(
    broker: EmbeddedBroker,
    session_to: Callable[..., Session],
    next_message: Callable[..., Message],
    whole_of: Callable[..., bytes | None],
) -> None:
    data = os.urandom(60 * 256 * 1024 + 17)
    sender, receiver = session_to(broker, "sender"), session_to(broker, "receiver")
    receiver.subscribe("blob/+/+")
    receiver.wait_connected(WAIT_S)
    sender.wait_connected(WAIT_S)
    reader = FrameReader(data)
    assert reader.count == 61
    for index, frame in reader.frames():
        sender.publish(f"blob/x/{index}", frame).wait()
    arrived: list[bytes] = []
    while whole_of(arrived) is None:
        arrived.append(next_message(receiver).payload)
    assert whole_of(arrived) == data


@pytest.mark.chaos
def test_sending_fails_when_the_broker_dies_so_that_the_sender_can_resume(
    broker: EmbeddedBroker, session_to: Callable[..., Session]
) -> None:
    session = session_to(broker, "sender")
    session.wait_connected(WAIT_S)
    for index in range(10):
        session.publish(f"f/{index}", bytes(1000)).wait()
    os.kill(broker.pid, signal.SIGKILL)
    with pytest.raises(TransportError, match=r"connection lost|not connected"):  # noqa: PT012 - whichever shows it
        for index in range(10, 1000):
            session.publish(f"f/{index}", bytes(1000)).wait()


def test_an_owner_that_is_slow_gets_everything_in_order_and_can_publish_meanwhile(
    broker: EmbeddedBroker,
    session_to: Callable[..., Session],
    next_event: Callable[..., Event],
    next_message: Callable[..., Message],
) -> None:
    writer, slow = session_to(broker, "writer"), session_to(broker, "slow")
    slow.subscribe("f/#")
    slow.wait_connected(WAIT_S)
    writer.wait_connected(WAIT_S)
    for delivery in [writer.publish(f"f/{number}", b"x" * 1000) for number in range(300)]:
        delivery.wait()
    slow.publish("g/slow", b"still alive").wait()
    assert isinstance(next_event(slow, lambda event: True), Connected)
    assert [next_message(slow).topic for _ in range(300)] == [f"f/{number}" for number in range(300)]


@pytest.mark.parametrize(("count", "size"), [(ROOM_MESSAGES + 300, 10), (200, 256 * 1024)])
def test_an_owner_that_does_not_take_slows_the_broker_down_and_loses_nothing(
    broker: EmbeddedBroker,
    session_to: Callable[..., Session],
    next_event: Callable[..., Event],
    next_message: Callable[..., Message],
    count: int,
    size: int,
) -> None:
    writer, slow = session_to(broker, "writer"), session_to(broker, "slow")
    slow.subscribe("f/#")
    slow.wait_connected(WAIT_S)
    assert isinstance(next_event(slow, lambda event: True), Connected)
    writer.wait_connected(WAIT_S)
    for index in range(count):
        writer.publish(f"f/{index}", bytes(size)).wait()
    give_up_s = time.monotonic() + WAIT_S
    while slow.events.has_room and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert not slow.events.has_room
    assert not slow.events.is_overrun
    assert [next_message(slow).topic for _ in range(count)] == [f"f/{index}" for index in range(count)]
    assert slow.events.has_room


def test_a_broker_that_ignores_how_much_may_be_unacknowledged_is_left(
    next_event: Callable[..., Event], caplog: pytest.LogCaptureFixture
) -> None:
    publish = bytes([0x32, 8, 0, 1]) + b"f" + bytes([0, 9, 0]) + b"xy"  # quality of service 1, packet 9
    flood = bytes([0x20, 3, 0, 0, 0]) + publish * (MOST_MESSAGES + 1)
    with (
        Puppet(flood) as puppet,
        Session(host="127.0.0.1", port=puppet.port, client_id="modest") as session,
    ):
        give_up_s = time.monotonic() + WAIT_S
        while "ignores our receive maximum" not in caplog.text and time.monotonic() < give_up_s:
            time.sleep(0.01)
        assert "ignores our receive maximum" in caplog.text
        # Connected, Disconnected, and no message more than the limit
        assert session.events.qsize() <= MOST_MESSAGES + 2


def test_messages_of_quality_0_are_dropped_when_nobody_takes_them(
    broker: EmbeddedBroker, session_to: Callable[..., Session], caplog: pytest.LogCaptureFixture
) -> None:
    writer, slow = session_to(broker, "writer"), session_to(broker, "slow")
    slow.subscribe("f/#", qos=0)
    slow.wait_connected(WAIT_S)
    writer.wait_connected(WAIT_S)
    for number in range(ROOM_MESSAGES + 200):
        writer.publish(f"f/{number}", b"x", qos=0).wait()
    give_up_s = time.monotonic() + WAIT_S
    while "dropped" not in caplog.text and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert "dropped 1 message of quality of service 0" in caplog.text
    assert slow.events.qsize() == ROOM_MESSAGES


def test_publishing_without_a_connection_fails_where_somebody_waits(free_port: int) -> None:
    with Session(host="127.0.0.1", port=free_port, client_id="alone") as session:
        delivery = session.publish("f/x", b"1")
        assert delivery.settled
        with pytest.raises(TransportError, match="publish to f/x: not connected"):
            delivery.wait(0)


def test_unsubscribed_topics_come_no_longer(
    broker: EmbeddedBroker, session_to: Callable[..., Session], next_message: Callable[..., Message]
) -> None:
    session = session_to(broker, "fickle")
    session.subscribe("f/a", "f/b")
    session.wait_connected(WAIT_S)
    session.unsubscribe("f/a").wait()
    session.publish("f/a", b"1").wait()
    session.publish("f/b", b"2").wait()
    assert next_message(session).topic == "f/b"


def test_a_fault_of_ours_in_a_callback_is_logged_and_the_session_goes_on(
    broker: EmbeddedBroker,
    session_to: Callable[..., Session],
    next_event: Callable[..., Event],
    next_message: Callable[..., Message],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = session_to(broker, "faulty")
    session.subscribe("f/#")
    session.wait_connected(WAIT_S)
    put, faults = session.events.put_nowait, iter([RuntimeError("a fault of ours")])

    def put_or_fail(event: object) -> None:
        if isinstance(event, Message):
            for fault in faults:
                raise fault
        put(event)  # type: ignore[arg-type]

    monkeypatch.setattr(session.events, "put_nowait", put_or_fail)
    session.publish("f/x", b"1")
    gone = next_event(session, lambda event: isinstance(event, Disconnected))
    assert isinstance(gone, Disconnected)
    assert "a fault of ours" in gone.reason
    next_event(session, lambda event: isinstance(event, Connected))
    session.publish("f/x", b"2").wait()
    assert next_message(session).payload == b"2"
    assert "RuntimeError" in caplog.text


def test_a_fault_of_ours_outside_a_connection_is_final_and_told(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptors(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("distreal_edge.transport.connection.socket.socketpair", no_descriptors)
    with (
        Session(host="127.0.0.1", port=free_port, client_id="faulty") as session,
        pytest.raises(TransportError, match="Too many open files"),
    ):
        session.wait_connected(WAIT_S)


class Puppet:
    """A broker that answers every connection with the bytes it was given, and no more."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in [*self._open, self._listener]:
            each.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                self.connections += 1
                client.recv(4096)
                client.sendall(self._answer)


@pytest.mark.parametrize(
    ("code", "words"), [(0x86, "user name or password"), (0x87, "not authorise"), (0x85, "client id"), (0x84, "MQTT 5")]
)
def test_a_refusal_by_the_broker_is_final_at_once(code: int, words: str, next_event: Callable[..., Event]) -> None:
    with (
        Puppet(bytes([0x20, 3, 0, code, 0])) as puppet,
        Session(host="127.0.0.1", port=puppet.port, client_id="refused") as session,
    ):
        with pytest.raises(TransportError, match=words):
            session.wait_connected(WAIT_S)
        gone = next_event(session, lambda event: isinstance(event, Disconnected))
        assert isinstance(gone, Disconnected)
        assert gone.final
        with pytest.raises(TransportError, match=words):
            session.publish("f/x", b"1").wait(0)
        assert puppet.connections == 1


def test_a_subscription_that_is_refused_is_final_at_once(next_event: Callable[..., Event]) -> None:
    refused = bytes([0x20, 3, 0, 0, 0]) + bytes([0x90, 4, 0, 1, 0, 0x87])  # CONNACK, then SUBACK: not authorised
    with (
        Puppet(refused) as puppet,
        Session(host="127.0.0.1", port=puppet.port, client_id="stranger") as session,
    ):
        session.subscribe("distreal/1/gardn/round")
        gone = next_event(session, lambda event: isinstance(event, Disconnected) and event.final)
        assert isinstance(gone, Disconnected)
        assert "subscribe to distreal/1/gardn/round: refused: Not authorized" in gone.reason
        assert puppet.connections == 1


def test_a_broker_that_is_busy_is_asked_again() -> None:
    with (
        Puppet(bytes([0x20, 3, 0, 0x89, 0])) as puppet,  # 0x89: server busy
        Session(host="127.0.0.1", port=puppet.port, client_id="patient") as session,
    ):
        with pytest.raises(TransportError, match="Server busy"):
            session.wait_connected(1.5)
        assert session.failure is None
        assert puppet.connections >= 2


def test_a_broker_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(connection, "TICK_S", 0.1)
    with (
        Puppet(b"") as puppet,
        Session(host="127.0.0.1", port=puppet.port, client_id="patient") as session,
        pytest.raises(TransportError, match=r"did not answer within 0\.2 s"),
    ):
        session.wait_connected(1.0)


@pytest.mark.parametrize(
    "junk",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\xff\xff\xff\xff\xff", bytes(100), b"\xd0\x00" * 50],
    ids=["http", "long", "zeros", "pings"],
)
def test_whatever_answers_the_session_neither_dies_nor_hangs(junk: bytes) -> None:
    with (
        Puppet(junk) as puppet,
        Session(host="127.0.0.1", port=puppet.port, client_id="brave") as session,
    ):
        with pytest.raises(TransportError, match="no connection"):
            session.wait_connected(0.5)
        assert session.failure is None


def test_leaving_is_quick_while_there_is_no_broker(free_port: int) -> None:
    began_s = time.monotonic()
    with Session(host="127.0.0.1", port=free_port, client_id="alone", will_topic="f", will_payload=b"x"):
        pass
    assert time.monotonic() - began_s < 2


def test_no_thread_and_no_descriptor_is_left_behind(broker: EmbeddedBroker) -> None:
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    threads, descriptors = threading.active_count(), open_descriptors()
    for _ in range(5):
        with Session(host=broker.host, port=broker.port, client_id="brief") as session:
            session.wait_connected(WAIT_S)
    assert threading.active_count() == threads
    assert open_descriptors() == descriptors


def test_a_client_whose_name_somebody_else_takes_is_told_so(next_event: Callable[..., Event]) -> None:
    taken_over = bytes([0x20, 3, 0, 0, 0]) + bytes([0xE0, 2, 0x8E, 0])  # CONNACK, then DISCONNECT
    with (
        Puppet(taken_over) as puppet,
        Session(host="127.0.0.1", port=puppet.port, client_id="twin") as session,
    ):
        gone = next_event(session, lambda event: isinstance(event, Disconnected))
        assert isinstance(gone, Disconnected)
        assert gone.final
        assert "same id" in gone.reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"host": "broker.example"}, "without TLS"),
        ({"host": "192.168.0.9"}, "without TLS"),
        ({"port": 0}, "port"),
        ({"client_id": "a/b"}, "client id"),
        ({"keepalive_s": 0}, "keepalive_s"),
        ({"will_topic": "f"}, "will"),
        ({"password": "p"}, "username"),
    ],
)
def test_wrong_arguments_are_config_errors(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Session(**{"host": "localhost", "port": 1883, "client_id": "a", **arguments})  # type: ignore[arg-type]


def test_plain_text_to_another_machine_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    Session(host="192.168.0.9", port=1883, client_id="a", allow_plaintext=True)
    assert "192.168.0.9: in plain text" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        for host in ("localhost", "127.0.0.1", "127.8.8.8", "::1"):
            Session(host=host, port=1883, client_id="a")
    assert caplog.text == ""


@given(attempt=st.integers(1, 10_000), clients=st.integers(1, 10_000))
def test_delays_grow_with_the_federation(attempt: int, clients: int) -> None:
    longest_s = full_jitter_s(attempt, 1.0, clients)
    assert longest_s == (clients / 4 if clients >= 8 else max(clients / 4, min(2, 2 ** min(attempt - 1, 10))))
    assert full_jitter_s(attempt, 0.5, clients) == longest_s / 2


@given(seed=st.integers(0, 2**32), down_s=st.floats(0, 120))
def test_a_hundred_clients_come_back_soon_and_not_at_once(seed: int, down_s: float) -> None:
    draw = random.Random(seed)
    back: list[float] = []
    for _ in range(100):
        now_s, attempt = 0.0, 0
        while now_s <= down_s:
            attempt += 1
            now_s += full_jitter_s(attempt, draw.random(), 100)
        back.append(now_s - down_s)
    assert max(back) <= 25
    assert max(sum(at <= other < at + 1 for other in back) for at in back) <= 30  # 20 but for rare luck


@given(attempt=st.integers(1, 10_000), fraction=st.floats(0, 1))
def test_delays_double_up_to_a_cap_and_are_spread_from_zero(attempt: int, fraction: float) -> None:
    delay_s = full_jitter_s(attempt, fraction)
    assert 0 <= delay_s <= 30
    assert full_jitter_s(attempt, 0.0) == 0
    assert full_jitter_s(attempt, 1.0) == min(30, 2 ** min(attempt - 1, 10))
    assert full_jitter_s(attempt + 1, fraction) >= delay_s


def test_what_is_said_again_carries_the_number_of_its_connection(
    broker: EmbeddedBroker, session_to: Callable[..., Session], next_message: Callable[..., Message]
) -> None:
    numbers = iter((5, 9, 20))

    def told(number: int) -> bytes:
        return f"here {number}".encode()

    def gone(number: int) -> bytes:
        return f"gone {number}".encode()

    watcher = session_to(broker, "watcher")
    watcher.subscribe("f/state")
    watcher.wait_connected(WAIT_S)
    session = session_to(broker, "pi", will_topic="f/state", will_payload=gone, number=numbers.__next__)
    session.publish_retained("f/state", told)
    assert next_message(watcher).payload == b"here 5"
    # Another client takes its place: the broker says the will, and it comes back with a number of its own.
    with Session(host=broker.host, port=broker.port, client_id="pi") as thief:
        thief.wait_connected(WAIT_S)
        assert next_message(watcher).payload == b"gone 5"
    assert next_message(watcher).payload == b"here 9"
    session.republish("f/state")
    assert next_message(watcher).payload == b"here 9"
    session.close()
    assert next_message(watcher).payload == b"gone 9"


def test_taking_with_a_timeout_from_an_empty_queue_raises_empty(
    broker: EmbeddedBroker, session_to: Callable[..., Session]
) -> None:
    session = session_to(broker, "quiet")
    session.wait_connected(WAIT_S)
    assert isinstance(session.events.get(timeout=WAIT_S), Connected)
    with pytest.raises(queue.Empty):
        session.events.get_nowait()


@pytest.mark.usefixtures("_impatient_sessions")
def test_two_clients_of_one_id_are_told_what_may_be_wrong(
    broker: EmbeddedBroker, session_to: Callable[..., Session], caplog: pytest.LogCaptureFixture
) -> None:
    session_to(broker, "same").wait_connected(WAIT_S)
    session_to(broker, "same")
    give_up_s = time.monotonic() + WAIT_S
    while "same id" not in caplog.text and time.monotonic() < give_up_s:
        time.sleep(0.02)
    assert "with the same id" in caplog.text


@pytest.fixture
def _impatient_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(session_module, "LONGEST_DELAY_S", 1.0)
