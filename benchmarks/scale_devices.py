"""Thousands of devices in one process, whose training takes no time; `benchmarks/scale.py` runs it.

    python benchmarks/scale_devices.py '{"port": 1883, "devices": 1000, "broker": 4711}'

Every device has an MQTT session of its own and says what a `DeviceDaemon` says, in the same messages and the same
order: its state, what it wants of model and table, its offer, the chunks of an update that is sound and names it. It
does not train, keeps nothing on a disk, and shares with all others what it decoded. A thousand paho clients would take
all of the machine, so what a device needs of MQTT 5 is written down here.

Lines on standard input say what to do, and each is answered by a line of JSON: `connect`, `health 1`, `health 0`,
`count`, `again` (all say their state once more), `complete` (the last device says its state too), `end`.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

import json
import select
import socket
import struct
import sys
import time
from collections import Counter, deque
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from distreal_edge.device import Update, UpdateHeader, encode_update
from distreal_edge.device.survivors import SurvivorLog
from distreal_edge.dropout import Draws
from distreal_edge.network import Network
from distreal_edge.transport import (
    Ack,
    BlobTopic,
    DeviceHealth,
    DeviceState,
    DeviceTopic,
    FrameReader,
    Manifest,
    Offer,
    RoundTopic,
    Topics,
    Want,
    decode,
    encode,
)
from distreal_edge.transport.chunks import GROUP_CHUNKS, parse_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.network import Plan

TOPICS = Topics("scale")
IMAGES, STEPS, BATCH = 1000, 24, 32
DISTINCT = 8
AT_ONCE = 400
"""Connections that are being made at the same time; mosquitto lets a hundred wait, others come again in a second."""
KEEPALIVE_S = 60
PATIENCE_S = 10.0
"""After so long without an answer a device asks, or offers, again; then after twice as long, and so on."""


def make_update(plan: Plan, number: int) -> Update:
    """Make what a device sends; every fourth never trains more than 40 % of the filters."""
    rng = np.random.default_rng(number)
    log, draws = SurvivorLog(plan), Draws("ordered", plan.sizes, (number,), 1)
    for _ in range(STEPS):
        rate = float(rng.choice([0.6, 0.8] if number % 4 == 3 else [0.0, 0.3, 0.6]))
        log.add(draws([max(1, round((1 - rate) * size)) for size in plan.sizes]), BATCH)
    kept, images = log.arrays()
    changes = {
        name: (rng.standard_normal(parameter.shape, dtype=np.float32) * np.float32(1e-3))
        * (parameter.images_per_element(kept, images) > 0)
        for name, parameter in plan.parameters.items()
    }
    header = UpdateHeader(
        uid="u", device="d", round=1, model="a" * 64, images=STEPS * BATCH, mini_batches=STEPS, loss=1.0
    )
    return Update(header, changes, {}, kept, images)


# -- MQTT 5, as much of it as a device needs ---------------------------------------------------------------------------


def text(words: str | bytes) -> bytes:
    """Return a string or binary data as MQTT writes it."""
    data = words.encode() if isinstance(words, str) else words
    return struct.pack(">H", len(data)) + data


def packet(first: int, *parts: bytes) -> bytes:
    """Return a packet: its first byte, its length, its parts."""
    length, head = sum(map(len, parts)), bytearray([first])
    while True:
        length, digit = length >> 7, length & 0x7F
        head.append(digit | 0x80 if length else digit)
        if not length:
            return b"".join((head, *parts))


def connect(client_id: str, will_topic: str, will: bytes) -> bytes:
    """Return CONNECT with a clean start, a will that is retained, and the limits that a Session names."""
    properties = struct.pack(">BIBHBI", 0x11, 0, 0x21, 32, 0x27, 2 * 2**20)
    head = text("MQTT") + struct.pack(">BBHB", 5, 0b00101110, KEEPALIVE_S, len(properties)) + properties
    return packet(0x10, head, text(client_id), b"\0", text(will_topic), text(will))


def publish(topic: str, payload: bytes, number: int = 0, *, retain: bool = False) -> bytes:
    """Return PUBLISH, of quality of service 1 when it has a number."""
    identifier = struct.pack(">H", number) if number else b""
    return packet(0x30 | (bool(number) << 1) | retain, text(topic), identifier, b"\0", payload)


def subscribe(number: int, *filters: str) -> bytes:
    """Return SUBSCRIBE."""
    return packet(0x82, struct.pack(">HB", number, 0), *(text(each) + b"\1" for each in filters))


def unsubscribe(number: int, *filters: str) -> bytes:
    """Return UNSUBSCRIBE."""
    return packet(0xA2, struct.pack(">HB", number, 0), *map(text, filters))


def packets(data: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take whole packets off the beginning of what has arrived."""
    begin = 0
    while True:
        length = shift = 0
        place = begin + 1
        while place < len(data) and shift < 28:
            length |= (data[place] & 0x7F) << shift
            shift, place = shift + 7, place + 1
            if not data[place - 1] & 0x80:
                break
        else:
            break
        if len(data) < place + length:
            break
        yield data[begin], bytes(data[place : place + length])
        begin = place + length
    del data[:begin]


# -- devices -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def manifest_of(payload: bytes) -> tuple[Manifest, frozenset[str]]:
    """Decode a manifest, once for all."""
    manifest = decode(Manifest, payload, where="round")
    return manifest, frozenset(manifest.selected)


class Device:
    """One device, and its session."""

    def __init__(self, farm: Farm, name: str, session: int) -> None:
        """Begin to connect."""
        self.name = name
        self.ready = False
        self.busy_since_s = 0.0
        self.patience_s = PATIENCE_S
        self._farm = farm
        self._session = session
        self._number = 0
        self._data, self._waiting = bytearray(), bytearray()
        self._manifest: Manifest | None = None
        self._missing: set[tuple[str, int]] = set()
        self._tables: set[str] = set()
        self._update: tuple[Offer, FrameReader] | None = None
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", farm.port))
        self._send(connect(f"{name}-session", TOPICS.device_state(name), self._state("offline")), flush=False)

    def _state(self, state: str) -> bytes:
        return encode(DeviceState(state, self._session, IMAGES, "scale"))  # type: ignore[arg-type]

    def say(self, state: str) -> None:
        """Publish the state."""
        self._publish(TOPICS.device_state(self.name), self._state(state), retain=True)

    def tell_health(self, now: float) -> None:
        """Publish health, as every second."""
        health = DeviceHealth(now, 3.7, 2**30, 51.3, None, 4, 123.4, 0, None, 24, None, None)
        self._farm.sent["publish"] += 1
        topic = TOPICS.device_health(self.name)
        self._send(publish(topic, msgspec.json.encode(health), retain=True))

    def ping(self) -> None:
        """Say that we are there."""
        self._send(b"\xc0\0")

    def again(self, now: float) -> None:
        """Ask or offer again what was not answered."""
        self._farm.repeated += 1
        self.busy_since_s = now
        self.patience_s *= 2
        if self._missing:
            self._want()
        elif self._update is not None:
            self._publish(TOPICS.offer(self.name), encode(self._update[0]))

    # -- the wire --------------------------------------------------------------------------------------------------

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._farm.sent["publish"] += 1
        self._send(publish(topic, payload, self._next(), retain=retain))

    def _next(self) -> int:
        self._number = self._number % 65_535 + 1
        return self._number

    def _send(self, data: bytes, *, flush: bool = True) -> None:
        self._waiting += data
        if flush and len(self._waiting) == len(data):
            self.write()

    def write(self) -> None:
        """Write what the socket takes."""
        try:
            count = self.socket.send(self._waiting) if self._waiting else 0
        except (BlockingIOError, OSError):
            count = 0
        self._farm.sent["bytes"] += count
        del self._waiting[:count]
        self._farm.watch(self, writing=bool(self._waiting))

    def read(self) -> None:
        """Take in what has arrived."""
        data = self.socket.recv(2**19)
        if not data:
            raise ConnectionError(f"{self.name}: the broker has ended the connection")
        self._farm.received["bytes"] += len(data)
        self._data += data
        for first, body in packets(self._data):
            self._packet(first, body)

    def _packet(self, first: int, body: bytes) -> None:
        match first >> 4:
            case 2:
                if body[1]:
                    raise ConnectionError(f"{self.name}: refused with code {body[1]}")
                own = (TOPICS.ack(self.name), TOPICS.device_state(self.name))
                self._send(subscribe(self._next(), TOPICS.round, *own, TOPICS.aggregator_states))
                if not self._farm.held_back(self):
                    self.say("starting")
                    self.say("idle")
                self.ready = True
            case 3:
                self._farm.received["publish"] += 1
                place = 2 + int.from_bytes(body[:2])
                topic = body[2:place].decode()
                if first & 0b110:
                    self._send(packet(0x40, body[place : place + 2]))
                    place += 2
                self._message(topic, body[place + 1 :], retained=bool(first & 1))  # no properties: their length is 0
            case 14:
                raise ConnectionError(f"{self.name}: disconnected by the broker, code {body[:1].hex()}")

    # -- a round -----------------------------------------------------------------------------------------------------

    def _message(self, topic: str, payload: bytes, *, retained: bool) -> None:
        if TOPICS.is_aggregator_state(topic):
            return
        match TOPICS.parse(topic):
            case RoundTopic():
                self._announced(payload)
            case BlobTopic(digest, index):
                self._chunk(digest, index, payload)
            case DeviceTopic(kind="ack"):
                self._acknowledged(decode(Ack, payload, where=topic))
            case DeviceTopic(kind="state") if not retained and b'"offline"' in payload:
                raise ConnectionError(f"{self.name}: somebody says that it is gone")

    def _announced(self, payload: bytes) -> None:
        manifest, selected = manifest_of(payload)
        if self._manifest is not None and (manifest.number, manifest.finished) == (
            self._manifest.number,
            self._manifest.finished,
        ):
            return
        self._manifest = manifest
        self._farm.heard(manifest)
        if manifest.finished or self.name not in selected:
            return
        self._farm.busy.add(self)
        self.busy_since_s = time.monotonic()
        wanted = [manifest.model]
        if manifest.table.digest not in self._tables:
            wanted.insert(0, manifest.table)
        self._missing = {(blob.digest, index) for blob in wanted for index in range(blob.chunks)}
        self._send(subscribe(self._next(), *self._groups()))
        self._want()

    def _groups(self) -> list[str]:
        groups = sorted({index // GROUP_CHUNKS for _, index in self._missing})
        return [TOPICS.blob_group(group) for group in groups]

    def _want(self) -> None:
        for digest in sorted({digest for digest, _ in self._missing}):
            missing = tuple(sorted(index for of, index in self._missing if of == digest))
            self._publish(TOPICS.want(self.name), encode(Want(digest, missing)))

    def _chunk(self, digest: str, index: int, frame: bytes) -> None:
        assert self._manifest is not None
        if (digest, index) not in self._missing:
            return
        groups = self._groups()
        self._missing.discard((digest, index))
        if digest == self._manifest.table.digest:
            self._tables.add(digest)
        else:
            self._farm.learn(digest, frame)
        if self._missing:
            return
        self._send(unsubscribe(self._next(), *groups))
        self.say("training")
        self.busy_since_s, self.patience_s = time.monotonic(), PATIENCE_S
        data, uid = self._farm.update(self.name, self._manifest)
        reader = FrameReader(data)
        offer = Offer(
            uid, self._manifest.number, self._manifest.model.digest, reader.digest, reader.total_bytes, reader.count
        )
        self._update = (offer, reader)
        self.say("uploading")
        self._publish(TOPICS.offer(self.name), encode(offer))

    def _acknowledged(self, ack: Ack) -> None:
        if self._update is None or ack.uid != self._update[0].uid:
            return
        self.busy_since_s, self.patience_s = time.monotonic(), PATIENCE_S
        if ack.kind == "resend":
            for index in ack.missing:
                frame = self._update[1].frame(index)
                self._publish(TOPICS.update(self.name, ack.uid, index), frame)
            return
        if ack.kind == "refused":
            self._farm.refused.append(ack.reason or "")
        self._update = None
        self._farm.busy.discard(self)
        self.say("idle")


class Farm:
    """All devices, and what they have in common."""

    def __init__(self, port: int, devices: int, broker: int) -> None:
        """Connect nobody yet; `broker` is the process whose memory and time are noted."""
        self.port = port
        self.broker = broker
        self.devices: list[Device] = []
        self.busy: set[Device] = set()
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.repeated = 0
        self.refused: list[str] = []
        self.rounds: list[dict[str, Any]] = []
        self._count = devices
        self._known = (0, False)
        self._models: dict[str, list[Update]] = {}
        self._writing: set[Device] = set()
        self._by_descriptor: dict[int, Device] = {}
        self._epoll = select.epoll()
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        self._connecting: deque[str] = deque()
        self._complete = False
        self._health = False
        self._health_round: Iterator[None] = iter(())

    def held_back(self, device: Device) -> bool:
        """Say whether a device is the last one, without which no round opens, before it may speak."""
        return device.name == name_of(self._count - 1) and not self._complete

    def heard(self, manifest: Manifest) -> None:
        """Note where all stands when the first device hears of a round."""
        if (manifest.number, manifest.finished) != self._known:
            self._known = (manifest.number, manifest.finished)
            self.rounds.append(self.figures())

    def figures(self) -> dict[str, Any]:
        """Return what was sent and received so far, and what the broker takes."""
        stat = Path(f"/proc/{self.broker}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        status = Path(f"/proc/{self.broker}/status").read_text(encoding="utf-8").splitlines()
        memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status if line.startswith(("VmR", "VmH"))}
        return {
            "wall_s": time.monotonic(),
            "bytes_out": self.sent["bytes"],
            "bytes_in": self.received["bytes"],
            "messages_out": self.sent["publish"],
            "messages_in": self.received["publish"],
            "broker_cpu_s": (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
            "broker_bytes": memory["VmRSS"],
            "broker_peak_bytes": memory["VmHWM"],
            "own_cpu_s": time.process_time(),
            "repeated": self.repeated,
            "refused": self.refused[:5],
        }

    def learn(self, digest: str, frame: bytes) -> None:
        """Make the updates of a model, once for all."""
        if digest not in self._models:
            plan = Network.from_bytes(bytes(parse_frame(frame, where="model").chunk), "the model").plan
            known = next(iter(self._models.values()), None) or [make_update(plan, number) for number in range(DISTINCT)]
            self._models = {digest: known}

    def update(self, name: str, manifest: Manifest) -> tuple[bytes, str]:
        """Return a device's update, and its uid."""
        ready = self._models[manifest.model.digest][int(name.partition("-")[2]) % DISTINCT]
        uid = f"r{manifest.number}-{name}"
        header = msgspec.structs.replace(
            ready.header, uid=uid, device=name, round=manifest.number, model=manifest.model.digest
        )
        return encode_update(Update(header, ready.changes, {}, ready.kept, ready.kept_images)), uid

    def watch(self, device: Device, *, writing: bool) -> None:
        """Wait until a socket takes more, or no longer."""
        if writing != (device in self._writing):
            (self._writing.add if writing else self._writing.discard)(device)
            self._epoll.modify(device.socket, select.EPOLLIN | (select.EPOLLOUT if writing else 0))

    def serve(self) -> None:
        """Do what standard input says, until `end`."""
        second = quarter = time.monotonic()
        while True:
            for descriptor, happened in self._epoll.poll(0.05):
                device = self._by_descriptor.get(descriptor)
                if device is None:
                    if not self._command(sys.stdin.readline().split()):
                        return
                    continue
                if happened & select.EPOLLOUT:
                    device.write()
                if happened & ~select.EPOLLOUT:
                    device.read()
            now = time.monotonic()
            self._connect_more()
            for _ in zip(range(500), self._health_round, strict=False):
                pass
            if now >= second:
                second = now + 1.0
                if self._health:
                    self._health_round = self._tell_health()
                for device in [each for each in self.busy if now - each.busy_since_s > each.patience_s]:
                    device.again(now)
            if now >= quarter:
                quarter = now + KEEPALIVE_S / 4
                for device in self.devices:
                    device.ping()

    def _tell_health(self) -> Iterator[None]:
        for device in self.devices:
            device.tell_health(time.time())
            yield

    def _connect_more(self) -> None:
        if not self._connecting:
            return
        unready = sum(not device.ready for device in self.devices[-2 * AT_ONCE :])
        while self._connecting and unready < AT_ONCE:
            device = Device(self, self._connecting.popleft(), int(time.time() * 1000))
            self._by_descriptor[device.socket.fileno()] = device
            self._writing.add(device)
            self._epoll.register(device.socket, select.EPOLLIN | select.EPOLLOUT)
            self.devices.append(device)
            unready += 1

    def _command(self, words: list[str]) -> bool:
        match words:
            case ["connect"]:
                self._connecting.extend(map(name_of, range(self._count)))
            case ["health", on]:
                self._health = on == "1"
                self._health_round = iter(())
            case ["again"]:
                for device in self.devices[:-1]:
                    device.say("idle")
            case ["complete"]:
                self._complete = True
                self.devices[-1].say("starting")
                self.devices[-1].say("idle")
            case ["count"]:
                pass
            case _:
                return False
        ready = sum(device.ready for device in self.devices)
        print(json.dumps({"ready": ready, "rounds": self.rounds, **self.figures()}), flush=True)
        return True


def name_of(number: int) -> str:
    """Return the name of a device."""
    return f"pi-{number:05d}"


if __name__ == "__main__":
    Farm(**json.loads(sys.argv[1])).serve()
