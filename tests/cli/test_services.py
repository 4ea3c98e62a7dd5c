"""What a person or systemd sees of a running program: its log, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distreal_edge.cli.service import start_logging, stopping_on_signals
from distreal_edge.transport import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 30.0
SOURCES = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []

    def aggregate(port: int) -> subprocess.Popen[str]:
        path = tmp_path / "federation.toml"
        path.write_text(
            f'federation = "farm"\nstate = "{tmp_path}/state"\nnetwork.zoo = "resnet8"\nbroker.port = {port}\n'
        )
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "distreal_edge", "aggregate", "--config", str(path)],
                stderr=subprocess.PIPE,
                text=True,
                cwd=SOURCES,
            )
        )
        return children[-1]

    yield aggregate
    for child in children:
        child.kill()
        child.communicate()


def read_until(child: subprocess.Popen[str], said: str) -> list[str]:
    assert child.stderr is not None
    lines = []
    for line in child.stderr:  # ends with the process, and pytest-timeout bounds it
        lines.append(line)
        if said in line:
            return lines
    pytest.fail(f"{said!r} was never said: {lines}")


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [(signal.SIGTERM, 0, "stopped after 0 rounds"), (signal.SIGHUP, 0, "stopped after 0 rounds"),
     (signal.SIGINT, 130, "distreal-edge: interrupted")],
)  # fmt: skip
def test_a_signal_ends_the_aggregator_cleanly(
    start: Callable[..., subprocess.Popen[str]], number: signal.Signals, code: int, last: str
) -> None:
    with EmbeddedBroker() as broker:
        child = start(broker.port)
        lines = read_until(child, "waiting for devices: 0 of at least 1 are here")
        child.send_signal(number)
        _, rest = child.communicate(timeout=WAIT_S)
    assert child.returncode == code
    lines += rest.splitlines()
    assert last in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_an_aggregator_starts_before_its_broker_and_says_what_it_waits_for(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = start(port)
    read_until(child, "waiting for the broker")
    with EmbeddedBroker(port=port):
        read_until(child, "waiting for devices")


def test_a_broker_that_refuses_for_good_ends_the_program(start: Callable[..., subprocess.Popen[str]]) -> None:
    # A broker that answers CONNECT with 0x86, bad user name or password.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(WAIT_S)

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x20\x03\x00\x86\x00")
                connection.recv(1000)

        thread = threading.Thread(target=refuse)
        thread.start()
        child = start(listener.getsockname()[1])
        _, text = child.communicate(timeout=WAIT_S)
        thread.join(WAIT_S)
    assert child.returncode == 6
    assert "Traceback" not in text
    last = text.splitlines()[-1]
    assert last.startswith("distreal-edge: broker 127.0.0.1:")
    assert "refuses user name or password" in last


def test_a_log_message_stays_one_line_whatever_it_quotes(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        start_logging()
        logging.getLogger("test").warning("device %s said %s", "pi-1", "a\nb\x1b[2J\ud800 ü")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(" WARNING test: device pi-1 said a?b?[2J? ü")


def test_a_first_signal_asks_and_a_second_one_insists() -> None:
    before = signal.getsignal(signal.SIGINT)
    said = []
    with pytest.raises(KeyboardInterrupt), stopping_on_signals() as stop:  # noqa: PT012 - the end raises, by design
        os.kill(os.getpid(), signal.SIGINT)
        said.append(stop.wait(WAIT_S))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - a signal comes when it comes
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(WAIT_S)
        said.append("insisted")
    assert said == [True, "insisted"]
    with stopping_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(WAIT_S)
    assert signal.getsignal(signal.SIGINT) is before
