"""What a person or systemd sees of a running program: its log, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from distreal_edge.cli.logs import LogFormat, start_logging
from distreal_edge.cli.service import stopping_on_signals
from distreal_edge.transport import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 30.0
SOURCES = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []

    def aggregate(port: int, **environment: str) -> subprocess.Popen[str]:
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
                env=os.environ | environment,
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


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port at which a broker answers every CONNECT with 0x86, bad user name or password."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def refuse() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(b"\x20\x03\x00\x86\x00")
                        connection.recv(1000)

        thread = threading.Thread(target=refuse)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT_S)


def test_at_a_terminal_a_broker_that_refuses_for_good_ends_the_program(
    start: Callable[..., subprocess.Popen[str]], refusing: int
) -> None:
    child = start(refusing)
    _, text = child.communicate(timeout=WAIT_S)
    assert child.returncode == 6
    assert "Traceback" not in text
    last = text.splitlines()[-1]
    assert last.startswith("distreal-edge: broker 127.0.0.1:")
    assert "refuses user name or password" in last


def test_a_service_goes_on_when_a_broker_refuses_for_good_and_says_so(
    start: Callable[..., subprocess.Popen[str]], refusing: int, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S)
        child = start(refusing, NOTIFY_SOCKET=str(tmp_path / "notify"))
        said = [manager.recv(4096).decode()]
        while "refuses" not in said[-1]:
            said.append(manager.recv(4096).decode())
        assert child.poll() is None
        child.terminate()
        assert child.wait(WAIT_S) == 0
    assert said[0] == "READY=1\nSTATUS=waiting for the broker"
    assert said[-1].startswith("STATUS=refused, tries again every 30 s: broker 127.0.0.1:")


@pytest.fixture
def log_to() -> Iterator[Callable[[IO[str], LogFormat], None]]:
    """Start logging anew, to a file that stands for standard error."""
    root = logging.getLogger()
    before, level, error = root.handlers[:], root.level, sys.stderr

    def begin(file: IO[str], log_format: LogFormat) -> None:
        root.handlers.clear()
        sys.stderr = file  # type: ignore[assignment]
        start_logging(log_format)

    yield begin
    sys.stderr = error
    root.handlers[:] = before
    root.setLevel(level)


def journal_of(file: IO[str]) -> str:
    status = os.fstat(file.fileno())
    return f"{status.st_dev}:{status.st_ino}"


def log_something() -> None:
    log = logging.getLogger("test")
    log.warning("device %s said %s", "pi-1", "a\nb\x1b[2J\ud800 ü")
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        log.exception("round %d", 7)


def test_a_log_message_stays_one_line_whatever_it_quotes(
    log_to: Callable[[IO[str], LogFormat], None], tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w") as file:
        log_to(file, "text")
        log_something()
    line, *_ = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING test: device pi-1 said a\?b\?\[2J\? ü", line)


def test_the_journal_gets_priorities_and_no_times(
    log_to: Callable[[IO[str], LogFormat], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setenv("JOURNAL_STREAM", journal_of(file))
        log_to(file, "text")
        log_something()
        logging.getLogger("test").info("idle")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "<4>test: device pi-1 said a?b?[2J? ü"
    assert lines[1] == "<3>test: round 7"
    assert all(line.startswith("<3>") for line in lines[1:-1])
    assert lines[-2:] == ["<3>ZeroDivisionError: integer division or modulo by zero", "<6>test: idle"]


def test_another_stream_than_the_journals_gets_times(
    log_to: Callable[[IO[str], LogFormat], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "log").open("w") as file, (tmp_path / "other").open("w") as other:
        monkeypatch.setenv("JOURNAL_STREAM", journal_of(other))
        log_to(file, "text")
        log_something()
    assert not (tmp_path / "log").read_text().startswith("<")


def test_json_lines_hold_all_of_a_message(log_to: Callable[[IO[str], LogFormat], None], tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        log_to(file, "json")
        log_something()
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert abs(first.pop("time") - time.time()) < WAIT_S
    assert first == {"level": "warning", "logger": "test", "message": "device pi-1 said a\nb\x1b[2J\ud800 ü"}
    assert (second["level"], second["message"]) == ("error", "round 7")
    assert second["traceback"].endswith("ZeroDivisionError: integer division or modulo by zero")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_forced_end_waits_two_seconds_for_nobody(number: signal.Signals, code: int) -> None:
    # The main thread does not come back, and neither does one that would be waited for.
    program = (
        "import threading, time\nfrom distreal_edge.cli.service import stopping_on_signals\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "noted = threading.Event()\ndef note():\n    noted.set()\n    time.sleep(60)\n"
        "with stopping_on_signals(forced=True, asked_first=note) as stop:\n    print('up', flush=True)\n"
        "    stop.wait() and noted.wait()\n    print('asked', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=SOURCES) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        began_s = time.monotonic()
        child.send_signal(number)
        assert child.stdout.readline() == "asked\n"
        assert child.wait(WAIT_S) == code
        assert time.monotonic() - began_s < 2.0


def test_what_nohup_started_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(WAIT_S)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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
