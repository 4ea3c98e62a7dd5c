from __future__ import annotations

import queue
import socket
import time
from typing import TYPE_CHECKING

import pytest

from distreal_edge.transport import EmbeddedBroker, Message, Session
from distreal_edge.transport.embedded_broker import available_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distreal_edge.transport import Event
    from distreal_edge.transport.embedded_broker import BrokerKind

WAIT_S = 15.0


@pytest.fixture(params=["mosquitto", "iotcore"])
def broker_kind(request: pytest.FixtureRequest) -> BrokerKind:
    kind: BrokerKind = request.param
    if kind not in available_kinds():
        pytest.skip(f"{kind} is not installed")
    return kind


@pytest.fixture
def broker(broker_kind: BrokerKind) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(kind=broker_kind) as started:
        yield started


@pytest.fixture
def session_to() -> Iterator[Callable[..., Session]]:
    """Open sessions to a broker; all are closed after the test."""
    opened: list[Session] = []

    def open_session(broker: EmbeddedBroker, client_id: str, **arguments: object) -> Session:
        session = Session(host=broker.host, port=broker.port, client_id=client_id, **arguments)  # type: ignore[arg-type]
        opened.append(session.__enter__())
        return session

    yield open_session
    for session in opened:
        session.close()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def next_event() -> Callable[[Session, Callable[[Event], bool]], Event]:
    """Take events until one fits; the test fails when none does in time."""

    def take(session: Session, fits: Callable[[Event], bool]) -> Event:
        give_up_s = time.monotonic() + WAIT_S
        seen: list[Event] = []
        while (left_s := give_up_s - time.monotonic()) > 0:
            try:
                event = session.events.get(timeout=left_s)
            except queue.Empty:
                break
            if fits(event):
                return event
            seen.append(event)
        pytest.fail(f"no such event came, only {seen}")

    return take


@pytest.fixture
def next_message(next_event: Callable[[Session, Callable[[Event], bool]], Event]) -> Callable[..., Message]:
    """Take events until a message comes, on `topic` if given and with `payload` if given."""

    def take(session: Session, topic: str | None = None, payload: bytes | None = None) -> Message:
        def fits(event: Event) -> bool:
            return (
                isinstance(event, Message)
                and topic in {None, event.topic}
                and (payload is None or payload == event.payload)
            )

        event = next_event(session, fits)
        assert isinstance(event, Message)
        return event

    return take
