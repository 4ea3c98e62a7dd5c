"""A session with the broker that outlives its connections: it reconnects, resubscribes and republishes by itself."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Self

from distreal_edge.errors import ConfigError, TransportError
from distreal_edge.transport.connection import Connection, Endpoint
from distreal_edge.transport.delivery import Delivery
from distreal_edge.transport.inbox import Connected, Disconnected, Inbox
from distreal_edge.transport.refusals import Ending
from distreal_edge.transport.tls import PLAINTEXT, TlsFiles, check_plaintext, is_loopback, tls_context
from distreal_edge.transport.topics import check_name

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Session", "full_jitter_s"]

_log = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
# Of a federation whose size is known: every client tries within so long, and twice within it at worst.
SHORTEST_SPREAD_S = 2.0
SPREAD_S_PER_CLIENT = 0.25
# A connection that lasted so long was none that the broker ended at once.
LASTING_S = 10.0
CLOSE_TIMEOUT_S = 3.0
STOP_CHECK_S = 0.5
# So many connections in a row that were lost soon are not the network's fault alone.
SUSPICIOUS = 3


Numbered = bytes | Callable[[int], bytes]
"""A payload, or a function that makes it for the number of the present connection."""


def full_jitter_s(attempt: int, fraction: float, clients: int | None = None) -> float:
    """Return how long to wait before connection `attempt` (1, 2, ...): `fraction` (0 to 1) of a delay.

    `clients` is how many come back together when the broker does. Their delay grows with them, at once and to no more
    than that: a hundred are spread over 25 s, eight over 2 s. Where it is not known the delay doubles up to 30 s.
    """
    doubling_s = FIRST_DELAY_S * 2.0 ** min(attempt, 20)
    if clients is None:
        return fraction * min(LONGEST_DELAY_S, doubling_s)
    return fraction * max(min(SHORTEST_SPREAD_S, doubling_s), SPREAD_S_PER_CLIENT * clients)


class Session:
    """A context manager around an MQTT 5 session; entering returns at once, connecting goes on in the background.

    Take what happens from `events`: `Message`, `Connected`, `Disconnected`; the queue is bounded, and not taking slows
    the broker down. After every connect the subscriptions are made again and the last payload of every
    `publish_retained` topic is published again. A session starts clean and ends with its connection: whatever was not
    acknowledged then has failed, and its sender is told. A refusal by the broker or by TLS is final: see `failure`; so
    is one of a subscription, or of a retained message of quality of service 1: without them there is no taking part.

    Connections are numbered, by `number` if given; will and retained payloads may be functions of the number. `clients`
    may be set to how many there are at the broker, see `full_jitter_s`.

    On leaving, the will is published by us, so that the others know at once. `host` must be this machine, or `tls`
    given, or `allow_plaintext` set; wrong arguments raise ConfigError.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        client_id: str,
        will_topic: str | None = None,
        will_payload: Numbered | None = None,
        keepalive_s: int = 30,
        username: str | None = None,
        password: str | None = None,
        tls: TlsFiles | None = None,
        allow_plaintext: bool = False,
        number: Callable[[], int] | None = None,
    ) -> None:
        check_name(client_id, "client id")
        if not 1 <= port <= 65_535:
            raise ConfigError(f"broker port {port}: must be from 1 to 65535")
        if not 1 <= keepalive_s <= 3600:
            raise ConfigError(f"keepalive_s {keepalive_s}: must be from 1 to 3600 seconds")
        if (will_topic is None) != (will_payload is None):
            raise ConfigError("a will needs both will_topic and will_payload")
        if password is not None and username is None:
            raise ConfigError("a password needs a username")
        if tls is None:
            check_plaintext(host, allowed=allow_plaintext)
        self._endpoint = Endpoint(
            host=host,
            port=port,
            client_id=client_id,
            keepalive_s=keepalive_s,
            username=username,
            password=password,
            tls=None if tls is None else tls_context(tls),
        )
        self.events = Inbox()
        self.failure: TransportError | None = None
        self.clients: int | None = None
        self._will = None if will_topic is None or will_payload is None else (will_topic, will_payload)
        self._next_number = number or count(1).__next__
        self._number = 0
        self._subscriptions: dict[str, int] = {}
        self._retained: dict[str, tuple[Numbered, int]] = {}
        self._connection: Connection | None = None
        self._ready: Delivery | None = None  # the latest subscribe of this connection
        self._last_reason = ""
        self._stop = threading.Event()
        # Guards everything above. Held while subscribing and while publishing retained state, so that a reconnect
        # cannot put an older payload after a newer one.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"mqtt {client_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Publish the will, disconnect and end the background thread; at most a few seconds, and safe to call twice."""
        if self._will is not None and self.connected:
            topic, payload = self._will
            try:
                self.publish(topic, self._numbered(payload), retain=True).wait(CLOSE_TIMEOUT_S)
            except TransportError as failure:
                _log.info("the last word could not be said: %s", failure)
        self._stop.set()
        with self._changed:
            connection = self._connection
        if connection is not None:
            connection.close()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the present connection."""
        with self._changed:
            return self._ready is not None

    def wait_connected(self, timeout_s: float) -> None:
        """Return once connected and subscribed; raise TransportError after `timeout_s`, or at once when refused."""
        give_up_s = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: self._ready is not None or self.failure is not None, timeout_s)
            if self.failure is not None:
                raise self.failure
            if self._ready is None:
                reason = f" ({self._last_reason})" if self._last_reason else ""
                raise TransportError(
                    f"{self._endpoint}: no connection after {timeout_s:g} s{reason}; is the broker running?"
                )
            ready = self._ready
        ready.wait(max(0.0, give_up_s - time.monotonic()))

    def subscribe(self, *filters: str, qos: int = 1) -> Delivery:
        """Ask for topics, now and after every reconnect. The Delivery fails when the broker refuses."""
        with self._changed:
            self._subscriptions.update(dict.fromkeys(filters, qos))
            if self._connection is None:
                return self._not_connected(f"subscribe to {', '.join(filters)}")
            delivery = self._connection.subscribe(dict.fromkeys(filters, qos))
            if self._ready is not None:
                self._ready = delivery  # the broker answers in order, so the newest tells of all
            return delivery

    def unsubscribe(self, *filters: str) -> Delivery:
        """Ask for topics no longer."""
        with self._changed:
            for topic in filters:
                self._subscriptions.pop(topic, None)
            if self._connection is None:
                return self._not_connected(f"unsubscribe from {', '.join(filters)}")
            return self._connection.unsubscribe(list(filters))

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> Delivery:
        """Publish once, on the present connection. Without one the Delivery has failed already: nothing is kept.

        Raises TransportError when the message is larger than the broker takes.
        """
        with self._changed:
            connection = self._connection
        if connection is None:
            return self._not_connected(f"publish to {topic}")
        return connection.publish(topic, payload, qos=qos, retain=retain)

    def publish_retained(self, topic: str, payload: Numbered, *, qos: int = 1) -> Delivery:
        """Publish retained now if connected, and again after every reconnect, until the next call for this topic.

        An empty payload clears the topic at the broker and here. Raises TransportError when the message is too large.
        """
        with self._changed:
            if payload:
                self._retained[topic] = (payload, qos)
            else:
                self._retained.pop(topic, None)
            if self._connection is None:
                return self._not_connected(f"publish to {topic}")
            return self._publish_retained(self._connection, topic, payload, qos)

    def republish(self, topic: str) -> None:
        """Publish the last retained payload of a topic again, because somebody has put another in its place."""
        with self._changed:
            if self._connection is not None and topic in self._retained:
                self._publish_retained(self._connection, topic, *self._retained[topic])

    def _publish_retained(self, connection: Connection, topic: str, payload: Numbered, qos: int) -> Delivery:
        return connection.publish(topic, self._numbered(payload), qos=qos, retain=True, essential=qos > 0)

    def _numbered(self, payload: Numbered) -> bytes:
        return payload(self._number) if callable(payload) else payload

    def _not_connected(self, what: str) -> Delivery:
        delivery = Delivery(f"{self._endpoint}, {what}")
        delivery.settle(self.failure or TransportError(f"{delivery.what}: not connected"))
        return delivery

    # -- in the background thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._supervise()
        except Exception as error:  # noqa: BLE001 - the outermost loop of this thread: a fault of ours must not end it silently
            _log.exception("%s: a fault in this program ends the session", self._endpoint)
            self._on_ended(Ending(f"a fault in this program: {error!r}", final=True))

    def _supervise(self) -> None:
        attempt = short_lived = 0
        while not self._stop.is_set():
            # An owner that does not take what has arrived gets no more.
            while not self.events.has_room and not self._stop.wait(STOP_CHECK_S):
                pass
            began_s = time.monotonic()
            self._number = self._next_number()
            will = None if self._will is None else (self._will[0], self._numbered(self._will[1]))
            connection = Connection(replace(self._endpoint, will=will), self.events, self._on_connected)
            with self._changed:
                self._connection = connection
                if self._stop.is_set():
                    connection.close()
            ending = connection.run()
            lasted = ending.was_connected and time.monotonic() - began_s > LASTING_S
            attempt = 1 if lasted else attempt + 1
            # A broker that was away meanwhile ended the last connection for that reason.
            short_lived = short_lived + 1 if ending.was_connected and not lasted else 0
            if ending.was_connected and not ending.final and short_lived >= SUSPICIOUS:
                # mosquitto 2.0 gives a client's place to another of the same id without a word to the first.
                hint = f"{short_lived} times; perhaps another client connects with the same id"
                ending = replace(ending, reason=f"{ending.reason.rstrip('.')}, {hint}")
            self._on_ended(ending)
            if ending.final:
                return
            suspicious = short_lived - SUSPICIOUS
            if suspicious >= 0:
                # Two clients of one id would throw each other out for ever: less often, at least.
                self._stop.wait(min(LASTING_S, full_jitter_s(suspicious + 1, random.random())))
            else:
                self._stop.wait(full_jitter_s(attempt, random.random(), self.clients))

    def _on_connected(self, session_present: bool) -> None:
        with self._changed:
            assert self._connection is not None
            # Before anything that the subscriptions may bring.
            self.events.put_nowait(Connected(session_present))
            if self._subscriptions:
                ready = self._connection.subscribe(self._subscriptions)
            else:
                ready = Delivery("nothing to subscribe")
                ready.settle()
            for topic, (payload, qos) in self._retained.items():
                try:
                    self._publish_retained(self._connection, topic, payload, qos)
                except TransportError as failure:
                    _log.error("%s", failure)
            self._ready, self._last_reason = ready, ""
            self._changed.notify_all()
        _log.info("connected to %s as %s", self._endpoint, self._endpoint.client_id)
        if self._endpoint.tls is None and not is_loopback(self._endpoint.host):
            _log.warning("%s: %s", self._endpoint, PLAINTEXT)

    def _on_ended(self, ending: Ending) -> None:
        with self._changed:
            self._connection = self._ready = None
            news = ending.reason != self._last_reason
            self._last_reason = ending.reason
            if ending.final:
                self.failure = TransportError(f"{self._endpoint}: {ending.reason}")
            self._changed.notify_all()
        if self._stop.is_set():
            return
        if ending.was_connected or ending.final:
            self.events.put_nowait(Disconnected(ending.reason, final=ending.final))
        if ending.final:
            _log.error("%s: gave up: %s", self._endpoint, ending.reason)
        elif ending.was_connected:
            _log.warning("lost %s: %s; connecting again", self._endpoint, ending.reason)
        elif news:
            _log.warning("cannot reach %s: %s; trying until it answers", self._endpoint, ending.reason)
