"""One connection to the broker, from CONNECT to its end, in whatever thread runs it.

A new paho client is made for every connection. paho would keep unacknowledged messages in memory and send them again by
itself; here what was not acknowledged when a connection ends has failed, and says so, and the sender decides. paho's
own network thread is not used either: `run` drives its public loop functions, so that no exception can end it unseen.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from distreal_edge.errors import TransportError
from distreal_edge.transport.delivery import Delivery
from distreal_edge.transport.inbox import RECEIVE_MAXIMUM, Inbox, Message
from distreal_edge.transport.refusals import Ending, ending_of, is_final, refusal
from distreal_edge.transport.tls import explain_loss, refused_by_tls
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CONNECT_TIMEOUT_S", "LARGEST_PACKET_BYTES", "Connection", "Endpoint"]

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
# Nothing in the protocol comes near it; a broker may allow less, and says so in its CONNACK.
LARGEST_PACKET_BYTES = 2 * 1024 * 1024
# paho's outgoing queue, unbounded by default.
MOST_UNACKNOWLEDGED = 1024
# What paho has on the way at once; it cannot be told a broker's own limit (mosquitto's default is 20) any more.
MOST_IN_FLIGHT = 16
# Command byte, length, topic length, packet identifier, empty properties, rounded up.
PACKET_OVERHEAD_BYTES = 16
TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom to connect to, as whom."""

    host: str
    port: int
    client_id: str
    keepalive_s: int
    will: tuple[str, bytes] | None = None
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"broker {self.host}:{self.port}"


class Connection:
    """One connection. `run` blocks until it has ended; the other methods may be called from any thread meanwhile.

    `on_connected(session_present)` is called in the running thread after the broker's CONNACK, before any message.
    """

    def __init__(self, endpoint: Endpoint, inbox: Inbox, on_connected: Callable[[bool], None]) -> None:
        self._endpoint = endpoint
        self._inbox = inbox
        self._on_connected = on_connected
        self.largest_packet_bytes = LARGEST_PACKET_BYTES
        self._connected = False
        self._ending: Ending | None = None
        self._network_error = ""
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards the two tables; never held while paho is called
        self._deliveries: dict[int, Delivery] = {}
        self._early: dict[int, list[ReasonCode]] = {}
        self._dropped = 0
        self._overrun = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._client = self._make_client()

    # -- from any thread -------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool, essential: bool = False) -> Delivery:
        """Hand one message to the broker. Raises TransportError when it is larger than the broker takes.

        A broker that refuses what is `essential` ends the connection for good.
        """
        delivery = Delivery(f"{self._endpoint}, publish to {topic}", essential=essential)
        size = len(payload) + len(topic.encode()) + PACKET_OVERHEAD_BYTES
        if size > self.largest_packet_bytes:
            raise TransportError(
                f"{delivery.what}: {size} bytes, at most {self.largest_packet_bytes} are taken; "
                "raise max_packet_size in the broker's configuration"
            )
        return self._send(delivery, lambda: self._publish(topic, payload, qos=qos, retain=retain))

    def subscribe(self, filters: Mapping[str, int]) -> Delivery:
        """Ask for topics; `filters` maps each to its quality of service."""
        delivery = Delivery(f"{self._endpoint}, subscribe to {', '.join(filters)}", essential=True)
        options = [(topic, SubscribeOptions(qos=qos)) for topic, qos in filters.items()]
        return self._send(delivery, lambda: self._client.subscribe(options))

    def unsubscribe(self, filters: list[str]) -> Delivery:
        """Ask for topics no longer."""
        delivery = Delivery(f"{self._endpoint}, unsubscribe from {', '.join(filters)}")
        return self._send(delivery, lambda: self._client.unsubscribe(filters))

    def close(self) -> None:
        """Say DISCONNECT, which keeps the broker from publishing the will, and let `run` return."""
        self._closing.set()
        self._wake()

    def _publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> tuple[MQTTErrorCode, int]:
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        return MQTTErrorCode(info.rc), info.mid

    def _send(self, delivery: Delivery, send: Callable[[], tuple[MQTTErrorCode, int | None]]) -> Delivery:
        if not self._connected:
            delivery.settle(TransportError(f"{delivery.what}: not connected"))
            return delivery
        code, packet_id = send()
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or packet_id is None:
            delivery.settle(TransportError(f"{delivery.what}: {paho.error_string(code)}"))
            return delivery
        early: list[ReasonCode] | None = None
        with self._lock:
            if packet_id in self._early:  # acknowledged before we knew under which number
                early = self._early.pop(packet_id)
            elif self._ending is not None:
                delivery.settle(TransportError(f"{delivery.what}: {self._ending.reason}"))
            else:
                self._deliveries[packet_id] = delivery
        if early is not None:
            self._conclude(delivery, early)
        self._wake()
        return delivery

    def _settle(self, packet_id: int, codes: list[ReasonCode]) -> None:
        refusals = [code for code in codes if code.is_failure]
        with self._lock:
            delivery = self._deliveries.pop(packet_id, None)
            if delivery is None:
                self._early[packet_id] = refusals
                return
        self._conclude(delivery, refusals)

    def _conclude(self, delivery: Delivery, refusals: list[ReasonCode]) -> None:
        if not refusals:
            delivery.settle()
            return
        failure = refusal(delivery.what, refusals)
        # Health is published without anybody waiting for the outcome, who then finds it here.
        _log.warning("%s", failure)
        delivery.settle(failure)
        if delivery.essential and is_final(refusals):
            self._end(Ending(f"{failure}, and this client's federation, name and certificate", final=True))

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a full buffer wakes as well, a closed one has nobody to wake
            self._wake_sender.send(b"\0")

    # -- in the running thread -------------------------------------------------------------------------------------

    def run(self) -> Ending:
        """Connect, serve the connection until it ends, fail what is still open, and say why it ended."""
        try:
            self._end(self._connect_and_serve())
        except ssl.SSLError as error:
            self._end(Ending(self._explain(str(error)), final=refused_by_tls(error)))
        except (OSError, ValueError) as error:  # ValueError: paho's word for a host name that cannot be one
            self._end(Ending(self._explain(str(error) or type(error).__name__)))
        except Exception as error:  # noqa: BLE001 - the outermost loop of this thread: a fault of ours must not end it silently
            _log.exception("%s: a fault in this program ends the connection", self._endpoint)
            self._end(Ending(f"a fault in this program: {error!r}"))
        finally:
            self._release()
        assert self._ending is not None
        return self._ending

    def _connect_and_serve(self) -> Ending:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = LARGEST_PACKET_BYTES
        self._client.connect(
            self._endpoint.host,
            self._endpoint.port,
            self._endpoint.keepalive_s,
            clean_start=True,
            properties=properties,
        )
        give_up_s = time.monotonic() + CONNECT_TIMEOUT_S
        while self._ending is None:
            if self._overrun:
                self._disconnect(0x93)
                return Ending(f"too many messages wait: the broker ignores our receive maximum of {RECEIVE_MAXIMUM}")
            if self._closing.is_set():
                self._disconnect()
                return Ending("closed")
            if not self._connected and time.monotonic() > give_up_s:
                return Ending(f"accepted the connection but did not answer within {CONNECT_TIMEOUT_S:g} s")
            code = self._turn()
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS and self._ending is None:
                return Ending(
                    self._explain(self._network_error or paho.error_string(code)), final=self._network_refusal()
                )
        return self._ending

    def _turn(self) -> MQTTErrorCode:
        connected = self._client.socket()
        if connected is None:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        poll = select.poll()  # not select(): it fails for descriptors over 1023
        poll.register(connected.fileno(), select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        poll.register(self._wake_receiver.fileno(), select.POLLIN)
        buffered = isinstance(connected, ssl.SSLSocket) and connected.pending() > 0
        ready = dict(poll.poll(0 if buffered else TICK_S * 1000))
        if self._wake_receiver.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_receiver.recv(4096)
        happened = ready.get(connected.fileno(), 0)
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        if buffered or happened & ~select.POLLOUT:
            code = self._client.loop_read()
        if code == MQTTErrorCode.MQTT_ERR_SUCCESS and self._client.want_write():
            code = self._client.loop_write()
        return code if code != MQTTErrorCode.MQTT_ERR_SUCCESS else self._client.loop_misc()

    def _disconnect(self, reason: int = 0x00) -> None:
        # Behind what is still to be written, for as long as a tick. Not from a callback: paho would wait for itself.
        give_up_s = time.monotonic() + TICK_S
        self._client.disconnect(reasoncode=ReasonCode(PacketTypes.DISCONNECT, identifier=reason))
        while self._client.socket() is not None and self._client.want_write() and time.monotonic() < give_up_s:
            self._turn()

    def _end(self, ending: Ending) -> None:
        was_connected, self._connected = self._connected, False
        with self._lock:
            if self._ending is None:
                self._ending = Ending(ending.reason, final=ending.final, was_connected=was_connected)
            open_deliveries = list(self._deliveries.values())
            self._deliveries.clear()
        for delivery in open_deliveries:
            delivery.settle(TransportError(f"{delivery.what}: connection lost: {ending.reason}"))

    def _release(self) -> None:
        connected = self._client.socket()
        if connected is not None:
            connected.close()
        # paho's client is left to the garbage collector; its callbacks would keep it in a cycle with us.
        self._client.on_connect = self._client.on_disconnect = self._client.on_message = None
        self._client.on_publish = self._client.on_subscribe = self._client.on_unsubscribe = None
        self._client.on_log = None
        self._wake_receiver.close()
        self._wake_sender.close()

    def _explain(self, said: str) -> str:
        return explain_loss(said, tls=self._endpoint.tls is not None, accepted=self._connected)

    def _network_refusal(self) -> bool:
        # With TLS 1.3 the broker's refusal of our certificate arrives after the handshake, as an alert in what paho
        # reads, and paho tells of it only in its log.
        return not self._connected and "[SSL:" in self._network_error and "ALERT" in self._network_error.upper()

    # -- paho's callbacks; what they raise comes out of loop_read or loop_write and is caught in run() -----------------

    def _make_client(self) -> paho.Client:
        endpoint = self._endpoint
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=endpoint.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_queued_messages = MOST_UNACKNOWLEDGED
        client.max_inflight_messages = MOST_IN_FLIGHT
        if endpoint.will is not None:
            topic, payload = endpoint.will
            client.will_set(topic, payload, qos=1, retain=True)
        if endpoint.username is not None:
            client.username_pw_set(endpoint.username, endpoint.password)
        if endpoint.tls is not None:
            client.tls_set_context(endpoint.tls)
        client.on_connect = self._connack
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        client.on_publish = self._puback
        client.on_subscribe = self._suback
        client.on_unsubscribe = self._suback
        client.on_log = self._paho_log
        # With this set paho leaves all writing to whoever drives its loop; else it would write from publishing threads.
        client.on_socket_register_write = _do_nothing
        return client

    def _connack(
        self,
        _client: paho.Client,
        _data: Any,
        flags: paho.ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if code.is_failure:
            self._end(ending_of(code))
            return
        receive_maximum = getattr(properties, "ReceiveMaximum", MOST_IN_FLIGHT)
        if receive_maximum < MOST_IN_FLIGHT:
            reason = (
                f"the broker takes only {count_of(receive_maximum, 'message')} at once; set max_inflight_messages to 20"
            )
            self._end(Ending(reason, final=True))
            return
        self.largest_packet_bytes = min(
            LARGEST_PACKET_BYTES, getattr(properties, "MaximumPacketSize", LARGEST_PACKET_BYTES)
        )
        self._connected = True
        self._on_connected(flags.session_present)

    def _disconnected(
        self,
        _client: paho.Client,
        _data: Any,
        flags: paho.DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._end(ending_of(code))

    def _message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        packet_id, qos = message.mid, message.qos

        def acknowledge() -> None:
            client.ack(packet_id, qos)
            self._wake()

        try:
            topic = message.topic
        except UnicodeDecodeError:
            _log.warning("%s: dropped a message whose topic is not UTF-8", self._endpoint)
            acknowledge()
            return
        if qos == 0 and not self._inbox.has_room:
            self._dropped += 1
            if self._dropped.bit_count() == 1:  # 1, 2, 4, 8, ...: the log must not fill up as well
                _log.warning(
                    "%s: dropped %s of quality of service 0: not taken in time",
                    self._endpoint,
                    count_of(self._dropped, "message"),
                )
        elif self._inbox.is_overrun:
            self._overrun = True
        else:
            payload = bytes(message.payload)
            event = (
                Message(topic, payload, message.retain, acknowledge) if qos else Message(topic, payload, message.retain)
            )
            self._inbox.put_nowait(event)

    def _puback(
        self, _client: paho.Client, _data: Any, packet_id: int, code: ReasonCode, _properties: Properties
    ) -> None:
        self._settle(packet_id, [code])

    def _suback(
        self, _client: paho.Client, _data: Any, packet_id: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._settle(packet_id, codes)

    def _paho_log(self, _client: paho.Client, _data: Any, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            self._network_error = text


def _do_nothing(*_arguments: Any) -> None:
    pass
