from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distreal_edge.errors import ConfigError, TransportError
from distreal_edge.transport import EmbeddedBroker, embedded_broker
from distreal_edge.transport.embedded_broker import available_kinds, mqtt_answers

if TYPE_CHECKING:
    from distreal_edge.transport.embedded_broker import BrokerKind

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 10.0


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_dead(pid: int) -> bool:
    give_up_s = time.monotonic() + WAIT_S
    while is_alive(pid) and time.monotonic() < give_up_s:
        time.sleep(0.01)
    return not is_alive(pid)


def test_it_listens_on_loopback_only_until_it_is_left(broker_kind: BrokerKind) -> None:
    with EmbeddedBroker(kind=broker_kind) as broker:
        assert broker.kind == broker_kind
        assert broker.host == "127.0.0.1"
        assert mqtt_answers(broker.host, broker.port)
        assert is_alive(broker.pid)
        pid, port = broker.pid, broker.port
        listening = {
            line.split()[1]
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            if Path(table).exists()
            for line in Path(table).read_text().splitlines()[1:]
            if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
        }
        assert listening == {f"0100007F:{port:04X}"}
    assert not is_alive(pid)
    assert not mqtt_answers("127.0.0.1", port)


PARENT = """
import sys, threading
from distreal_edge.transport import EmbeddedBroker
with EmbeddedBroker(kind=sys.argv[1]) as broker:
    print(broker.pid, flush=True)
    threading.Event().wait()
"""


def start_parent(kind: str) -> tuple[subprocess.Popen[str], int]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, kind],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        return parent, int(parent.stdout.readline())


@pytest.mark.chaos
def test_it_dies_with_its_parent_even_when_that_is_killed(broker_kind: BrokerKind) -> None:
    parent, pid = start_parent(broker_kind)
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    assert wait_until_dead(pid)


def test_ctrl_c_reaches_the_parent_which_then_ends_the_broker(broker_kind: BrokerKind) -> None:
    parent, pid = start_parent(broker_kind)
    assert os.getpgid(pid) != os.getpgid(parent.pid)
    os.killpg(parent.pid, signal.SIGINT)
    parent.wait(WAIT_S)
    assert not is_alive(pid)


def test_it_outlives_the_thread_that_started_it(broker_kind: BrokerKind) -> None:
    broker = EmbeddedBroker(kind=broker_kind)
    starter = threading.Thread(target=broker.__enter__)
    starter.start()
    starter.join()
    try:
        # The kernel would have killed it by now, had it been tied to that thread.
        for _ in range(20):
            assert mqtt_answers(broker.host, broker.port)
    finally:
        broker.__exit__(None, None, None)


def test_a_port_that_is_taken_is_an_error_that_names_it(broker: EmbeddedBroker, broker_kind: BrokerKind) -> None:
    with (
        pytest.raises(TransportError, match=f"{broker_kind} on 127.0.0.1:{broker.port}: .*ended"),
        EmbeddedBroker(kind=broker_kind, port=broker.port),
    ):
        pass


def test_a_free_port_that_somebody_takes_first_is_tried_again(
    broker: EmbeddedBroker, broker_kind: BrokerKind, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    ports = iter([broker.port, free_port])
    monkeypatch.setattr(embedded_broker, "_free_port", lambda: next(ports))
    with EmbeddedBroker(kind=broker_kind) as second:
        assert second.port == free_port


def test_a_broker_that_is_not_installed_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_broker, "available_kinds", tuple)
    with pytest.raises(ConfigError, match=r"apt install mosquitto.*without root"):
        EmbeddedBroker()
    with pytest.raises(ConfigError, match="pip install"):
        EmbeddedBroker(kind="iotcore")


def test_mosquitto_is_preferred_when_it_is_installed() -> None:
    if "mosquitto" not in available_kinds():
        pytest.skip("mosquitto is not installed")
    assert EmbeddedBroker().kind == "mosquitto"


def test_its_pid_is_known_only_while_it_runs(broker_kind: BrokerKind) -> None:
    with pytest.raises(TransportError, match="not running"):
        _ = EmbeddedBroker(kind=broker_kind).pid


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to become somebody else")
def test_it_needs_no_root(broker_kind: BrokerKind) -> None:
    # Nobody, but able to read this checkout and its interpreter wherever they are.
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    nobody += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    program = f"""
import os
from distreal_edge.transport import EmbeddedBroker
with EmbeddedBroker(kind={broker_kind!r}) as broker:
    print(os.geteuid(), broker.kind)
"""
    done = subprocess.run(
        [*nobody, sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"65534 {broker_kind}"), done.stderr
