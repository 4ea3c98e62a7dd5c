"""broker_config/mosquitto.conf, read by a real mosquitto."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from time import sleep
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt import publish, subscribe
from paho.mqtt.enums import CallbackAPIVersion

from distreal_edge.identity import KeyFolder
from distreal_edge.transport import Message, Session, Topics
from distreal_edge.transport.connection import LARGEST_PACKET_BYTES
from distreal_edge.transport.inbox import ROOM_MESSAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGURATION = Path(__file__).resolve().parents[2] / "broker_config" / "mosquitto.conf"
LISTENER = "listener 1883 127.0.0.1"
# Debian keeps the program where an ordinary user's PATH does not look.
MOSQUITTO = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def with_a_free_port(text: str) -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    assert text.count(LISTENER) == 1
    return text.replace(LISTENER, LISTENER.replace("1883", str(port))), port


@contextmanager
def broker(configuration: str, folder: Path, *, warnings: int = 0) -> Iterator[int]:
    """Run mosquitto in `folder` from when it says so until the end of the block; give its process id."""
    assert MOSQUITTO is not None
    file = folder / "mosquitto.conf"
    # Started by root mosquitto changes to a user of its own, who may not write into the test's folder.
    file.write_text(("user root\n" if os.geteuid() == 0 else "") + configuration, encoding="utf-8")
    with subprocess.Popen([MOSQUITTO, "-c", file], cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "running" in line:
                    break
            said = "".join(line for line in lines if "should not be run as root" not in line)
            assert "running" in said
            assert "Error" not in said
            assert said.count("Warning") == warnings
            yield process.pid
        finally:
            for _ in range(20):
                # Not once: in the instant after it says that it runs, mosquitto 2.0 forgets that it shall end.
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=1)
                    break
            else:
                process.kill()
    assert process.returncode == 0


def test_only_this_machine_can_connect(tmp_path: Path) -> None:
    text, port = with_a_free_port(CONFIGURATION.read_text(encoding="utf-8"))

    with broker(text, tmp_path) as process_id:
        listening = [
            tuple(connection.laddr)
            for connection in psutil.Process(process_id).net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]

    assert listening == [("127.0.0.1", port)]


def test_clients_are_told_the_packet_limit_that_the_protocol_asks_for(tmp_path: Path) -> None:
    text, port = with_a_free_port(CONFIGURATION.read_text(encoding="utf-8"))
    answers: Queue[Any] = Queue()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda *arguments: answers.put(arguments[4])

    with broker(text, tmp_path):
        client.connect("127.0.0.1", port)
        client.loop_start()
        properties = answers.get(timeout=20)
        client.disconnect()
        client.loop_stop()

    assert properties.MaximumPacketSize == LARGEST_PACKET_BYTES


def test_a_retained_message_survives_a_restart(tmp_path: Path) -> None:
    text, port = with_a_free_port(CONFIGURATION.read_text(encoding="utf-8"))

    with broker(text, tmp_path):
        publish.single("distreal/1/test/round", b"7", qos=1, retain=True, port=port, hostname="127.0.0.1")
    with broker(text, tmp_path):
        message = subscribe.simple("distreal/1/test/round", qos=1, hostname="127.0.0.1", port=port)

    assert message.payload == b"7"
    assert message.retain


def test_an_aggregator_that_comes_back_is_told_of_three_thousand_devices(tmp_path: Path) -> None:
    text, port = with_a_free_port(CONFIGURATION.read_text(encoding="utf-8"))
    topics, seen = Topics("test"), set()
    known = {topics.device_state(f"pi-{number}") for number in range(3000)}

    with broker(text, tmp_path):
        publish.multiple(
            [(topic, b"{}", 1, True) for topic in known], hostname="127.0.0.1", port=port, client_id="devices"
        )
        with Session(host="127.0.0.1", port=port, client_id="aggregator") as session:
            session.wait_connected(20)
            session.subscribe(topics.device_states).wait(20)
            while session.events.qsize() < ROOM_MESSAGES:  # all that is acknowledged before it is taken
                sleep(0.01)
            while len(seen) < len(known):
                event = session.events.get(timeout=20)
                if isinstance(event, Message):
                    seen.add(event.topic)

    assert seen == known


def test_it_fits_into_debians_configuration_as_a_drop_in(tmp_path: Path) -> None:
    text, port = with_a_free_port(CONFIGURATION.read_text(encoding="utf-8"))
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "distreal-edge.conf").write_text(text, encoding="utf-8")
    # Debian's /etc/mosquitto/mosquitto.conf, except that its log goes to a file.
    debian = f"persistence true\npersistence_location {tmp_path}/\nlog_dest stderr\ninclude_dir {tmp_path}/conf.d\n"

    with broker(debian, tmp_path):
        publish.single("distreal/1/test/round", b"7", qos=1, retain=True, port=port, hostname="127.0.0.1")

    assert (tmp_path / "mosquitto.db").stat().st_size > 0


def test_what_boards_on_a_network_need_fits_into_debians_configuration_too(tmp_path: Path) -> None:
    keys = KeyFolder.create(tmp_path / "keys", "garden", ("localhost",), 8883, datetime.now(UTC))
    shipped = CONFIGURATION.with_name("mosquitto-tls.conf").read_text(encoding="utf-8")
    assert (keys.path / "broker" / "mosquitto.conf").read_text(encoding="utf-8") == shipped
    assert (keys.path / "broker" / "acl").read_text(encoding="utf-8") == (
        CONFIGURATION.with_name("acl").read_text(encoding="utf-8").replace("FEDERATION", "garden")
    )
    text = shipped.replace("/etc/mosquitto/distreal-edge", str(keys.path / "broker"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "distreal-edge.conf").write_text(text.replace("listener 8883", f"listener {port}"))
    debian = f"persistence true\npersistence_location {tmp_path}/\nlog_dest stderr\ninclude_dir {tmp_path}/conf.d\n"

    with broker(debian, tmp_path, warnings=3) as process_id:
        listening = {
            connection.laddr.port
            for connection in psutil.Process(process_id).net_connections()
            if connection.status == psutil.CONN_LISTEN
        }

    assert listening == {port}
