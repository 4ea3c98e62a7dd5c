"""An MQTT broker for demos and tests: a child process on a loopback port that needs no root and no configuration.

mosquitto when it is installed, else `iotcore` (rumqttd in a wheel). The child cannot outlive this process: the kernel
kills it when the parent dies, however it dies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Self

from distreal_edge.errors import ConfigError, TransportError
from distreal_edge.transport.connection import LARGEST_PACKET_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["BrokerKind", "EmbeddedBroker", "available_kinds", "mqtt_answers"]

_log = logging.getLogger(__name__)

BrokerKind = Literal["mosquitto", "iotcore"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 3.0
POLL_S = 0.02
PORT_TRIES = 5

# Run before the broker, in a process of its own, since code between fork and exec is unsafe in a program with threads.
# PR_SET_PDEATHSIG (1) survives exec. If the parent died before it was set, nobody would ever stop the broker.
TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

# rumqttd logs every packet at level ERROR, and has no way to stop but a signal.
IOTCORE_SERVER = """
import logging, sys
from iotcore.iotcore import IotCoreBroker
logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
IotCoreBroker(config_path=sys.argv[1]).run_forever()
"""

# A subscriber that falls behind is served from the queue until it holds max_queued_bytes; then messages are dropped.
MOSQUITTO_CONFIG = """\
listener {port} {host}
allow_anonymous true
persistence false
max_packet_size {largest_packet_bytes}
max_queued_messages 10000
max_queued_bytes 268435456
connection_messages false
log_dest stderr
log_type error
log_type warning
"""
# Started by root, mosquitto would become another user, and with that lose its tie to this process.
MOSQUITTO_AS_ROOT = "user root\n"

# rumqttd keeps, per topic filter, a log of segments; the oldest goes when there are more than max_segment_count,
# whether or not every subscriber has read it. So this is both the memory per filter and how far behind a subscriber may
# be.
IOTCORE_CONFIG = """\
id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 4
[v5.1]
name = "v5"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {largest_packet_bytes}
max_inflight_count = 100
dynamic_filters = true
"""

# CONNECT of MQTT 5: clean start, keep-alive 5 s, no properties, client id "probe"; the answer starts with 0x20
# (CONNACK)
PROBE = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x05\x00\x00\x05probe"
CONNACK = 0x20
DISCONNECT = b"\xe0\x00"


def find_mosquitto() -> Path | None:
    """Return the mosquitto program, also where Debian keeps it and an ordinary user's PATH does not look."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def available_kinds() -> tuple[BrokerKind, ...]:
    """Return the brokers that can be started here, the preferred one first."""
    kinds: list[BrokerKind] = []
    if find_mosquitto() is not None:
        kinds.append("mosquitto")
    if importlib.util.find_spec("iotcore") is not None:
        kinds.append("iotcore")
    return tuple(kinds)


class EmbeddedBroker:
    """A context manager around a broker process on 127.0.0.1; `host`, `port`, `kind` and `pid` say where and what.

    `kind` forces one of the two brokers, `port` a port (else a free one is found). Ctrl-C on the terminal does not
    reach the broker, so that clients can say goodbye first. Raises ConfigError when no such broker is installed,
    TransportError when it does not start.
    """

    def __init__(self, *, kind: BrokerKind | None = None, port: int | None = None) -> None:
        available = available_kinds()
        if kind is None and not available:
            raise ConfigError(
                "no MQTT broker is installed: `apt install mosquitto`, or, without root, "
                "`pip install 'distreal-edge[broker]'`"
            )
        if kind is not None and kind not in available:
            how = "apt install mosquitto" if kind == "mosquitto" else "pip install 'distreal-edge[broker]'"
            raise ConfigError(f"broker {kind!r} is not installed: `{how}`")
        self.kind: BrokerKind = kind or available[0]
        self.host = HOST
        self._wanted_port = port
        self._port = port or 0
        self._child: _Child | None = None

    @property
    def port(self) -> int:
        """The port it listens on; known once it has been entered."""
        return self._port

    @property
    def pid(self) -> int:
        """The broker's own process id; raises TransportError when it has not been entered."""
        if self._child is None:
            raise TransportError("the embedded broker is not running; enter it with `with`")
        return self._child.process.pid

    def __enter__(self) -> Self:
        for attempt in range(PORT_TRIES):
            self._port = self._wanted_port or _free_port()
            try:
                self._child = _start(self.kind, self._port)
            except TransportError:
                # Somebody may have taken the free port before the broker could.
                if self._wanted_port is not None or attempt == PORT_TRIES - 1:
                    raise
            else:
                break
        _log.info("embedded broker %s listens on %s:%d", self.kind, self.host, self._port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


class _Child:
    """A process, and the thread that started it and waits for it.

    The kernel's tie is to the *thread* that started the child, not to the process: hence one that lives as long as the
    child.
    """

    def __init__(self, command: list[str], stdin: IO[bytes] | int, stderr: IO[bytes]) -> None:
        self._command, self._stdin, self._stderr = command, stdin, stderr
        self._error: OSError | None = None
        self._spawned, self.exited = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="embedded broker", daemon=True)
        self._keeper.start()
        self._spawned.wait()
        if self._error is not None:
            raise TransportError(f"the broker cannot be started: {self._error}")

    def _keep(self) -> None:
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", TIED_TO_PARENT, str(os.getpid()), *self._command],
                stdin=self._stdin,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError as error:
            self._error = error
            self._spawned.set()
            return
        self._spawned.set()
        self.process.wait()
        self.exited.set()

    def stop(self) -> None:
        """End the process, by force if it does not end itself."""
        for end in (signal.SIGTERM, signal.SIGKILL):
            if self.exited.is_set():
                break
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(end)
            self.exited.wait(STOP_TIMEOUT_S)
        self._keeper.join(STOP_TIMEOUT_S)


def _start(kind: BrokerKind, port: int) -> _Child:
    with tempfile.TemporaryDirectory(prefix="distreal-broker-") as folder, tempfile.TemporaryFile() as stderr:
        if kind == "mosquitto":
            child = _mosquitto(port, stderr)
        else:
            config = Path(folder) / "broker.toml"
            config.write_text(IOTCORE_CONFIG.format(host=HOST, port=port, largest_packet_bytes=LARGEST_PACKET_BYTES))
            child = _Child([sys.executable, "-P", "-c", IOTCORE_SERVER, str(config)], subprocess.DEVNULL, stderr)
        try:
            _wait_until(lambda: _listens(child.process.pid, port) and mqtt_answers(HOST, port), child.exited)
        except BaseException as failure:
            child.stop()
            stderr.seek(0)
            words = stderr.read().decode(errors="replace").strip().splitlines()
            if isinstance(failure, TransportError):
                raise TransportError(
                    f"{kind} on {HOST}:{port}: {failure}: {words[-1] if words else 'it said nothing'}"
                ) from None
            raise
        return child


def _mosquitto(port: int, stderr: IO[bytes]) -> _Child:
    program = find_mosquitto()
    assert program is not None
    config = MOSQUITTO_CONFIG.format(host=HOST, port=port, largest_packet_bytes=LARGEST_PACKET_BYTES)
    # Read from standard input, so that no file is left behind when this process is killed.
    with tempfile.TemporaryFile() as file:
        file.write((config + (MOSQUITTO_AS_ROOT if os.geteuid() == 0 else "")).encode())
        file.flush()
        return _Child([str(program), "-c", "/dev/stdin"], file, stderr)


def _wait_until(answers: Callable[[], bool], exited: threading.Event) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while not answers():
        if exited.wait(POLL_S):
            raise TransportError("the broker ended while it was starting")
        if time.monotonic() > give_up_s:
            raise TransportError(f"the broker did not answer within {START_TIMEOUT_S:g} s")
    if exited.is_set():
        raise TransportError("the broker ended while it was starting")


def _listens(pid: int, port: int) -> bool:
    """Whether it is this very process that listens on `port`, and not somebody who was there before."""
    try:
        sockets = {str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    except OSError:  # it has just ended, or one of its descriptors was closed meanwhile
        return False
    # local address in hexadecimal, state 0A (LISTEN), inode
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" and f"socket:[{row[9]}]" in sockets for row in rows)


def mqtt_answers(host: str, port: int) -> bool:
    """Whether an MQTT 5 broker accepts a CONNECT at `host`:`port` now."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as probe:
            probe.sendall(PROBE)
            answer = probe.recv(1)
            probe.sendall(DISCONNECT)
    except OSError:
        return False
    return answer == bytes([CONNACK])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
