"""`distreal-edge status`, and the socket through which a running program answers it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from distreal_edge import __version__
from distreal_edge import status as module
from distreal_edge.durable import held_folder
from distreal_edge.errors import StateError
from distreal_edge.status import AggregatorStatus, DeviceStatus, StatusSocket, UpdateAnswer, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Run = "Callable[..., subprocess.CompletedProcess[str]]"

WAIT_S = 60.0
SOURCES = Path(__file__).resolve().parents[2]
DEVICE = DeviceStatus(
    federation="garden",
    device="pi-1",
    state="training",
    doing="training, round 12",
    connected=True,
    images=600,
    round=12,
    cores=2.4,
    memory_bytes=8.12e8,
    temperature_c=61.2,
    throttled=False,
    on_battery=False,
    paused=None,
    row=5,
    threads=2,
    macs_share=0.43,
    images_per_s=128.4,
    loss=0.8321,
    mini_batches=57,
    spool=0,
    last_answer=None,
    safe_mode=None,
)
AGGREGATOR = AggregatorStatus(
    federation="garden",
    state="collecting",
    doing="collecting, round 3 of 9, 1 of 2 updates here",
    connected=True,
    round=3,
    rounds=9,
    accuracy=0.875,
    devices=("pi-1", "pi-2", "pi-3"),
    selected=("pi-1", "pi-2"),
    answered=("pi-1",),
    deadline_s=None,
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


# -- the socket ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [DEVICE, AGGREGATOR])
def test_what_a_program_tells_is_what_is_answered_every_time(
    state: Path, told: DeviceStatus | AggregatorStatus
) -> None:
    with StatusSocket(state) as answering:
        first = ask(state)
        assert first is not None
        assert first.status is None
        answering.tell(told)
        for _ in range(3):
            answer = ask(state)
            assert answer is not None
            assert (answer.version, answer.process_id, answer.status) == (__version__, os.getpid(), told)
            assert 0.0 <= answer.age_s <= answer.uptime_s < WAIT_S


def test_nobody_answers_before_and_after(state: Path) -> None:
    assert ask(state) is None
    with StatusSocket(state):
        assert ask(state) is not None
    assert ask(state) is None
    assert list(state.iterdir()) == []
    assert ask(state / "missing") is None


def test_a_killed_programs_socket_looks_dead_and_is_taken_over(state: Path) -> None:
    code = f"import os, pathlib; from distreal_edge.status import StatusSocket\n\
StatusSocket(pathlib.Path({str(state)!r})).__enter__(); os._exit(1)"
    subprocess.run([sys.executable, "-c", code], check=False, cwd=SOURCES, timeout=WAIT_S)
    assert [path.name for path in state.iterdir()] == ["status.sock"]
    assert ask(state) is None
    with StatusSocket(state):
        assert ask(state) is not None


def test_nobody_else_may_connect_at_any_moment(state: Path) -> None:
    before = os.umask(0)
    try:
        with StatusSocket(state):
            assert stat.S_IMODE((state / "status.sock").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize("closed", ["status.sock", "."])
def test_another_user_is_told_to_use_sudo(closed: str) -> None:
    # Not in pytest's folders, which are closed to others themselves.
    folder = Path("/run") / f"distreal-edge-test-{os.getpid()}"
    folder.mkdir()
    try:
        with StatusSocket(folder):
            (folder / closed).chmod(0o700)
            # The sources may be closed to others as well: they are read before.
            become = "os.setgroups([]); os.setuid(65534)"
            code = f"import os, pathlib, distreal_edge.status as s; {become}; s.ask(pathlib.Path({str(folder)!r}))"
            ran = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                cwd=SOURCES,
                timeout=WAIT_S,
                check=False,
            )
    finally:
        shutil.rmtree(folder)
    assert f"StateError: {folder}: belongs to another user; ask as that user, or with sudo" in ran.stderr


def test_a_state_folder_may_lie_as_deep_as_it_likes(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-folder-with-quite-a-long-name"] * 8)
    deep.mkdir(parents=True)
    with StatusSocket(deep):
        assert ask(deep) is not None


def test_a_program_that_hangs_is_not_waited_for_for_ever(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    monkeypatch.chdir(state)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind("status.sock")
        deaf.listen(1)
        for _ in range(4):  # soon more than can wait
            with pytest.raises(StateError, match="does not answer"):
                ask(state)


@pytest.mark.timeout(30)
def test_a_program_that_dribbles_is_not_listened_to_for_ever(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    monkeypatch.chdir(state)
    with socket.socket(socket.AF_UNIX) as dribbling:
        dribbling.bind("status.sock")
        dribbling.listen(1)

        def dribble() -> None:
            asking, _ = dribbling.accept()
            with asking, contextlib.suppress(BrokenPipeError):
                while True:
                    asking.send(b" ")
                    time.sleep(0.01)

        dribbler = threading.Thread(target=dribble)
        dribbler.start()
        with pytest.raises(StateError, match="does not answer"):
            ask(state)
        dribbler.join()


@pytest.mark.parametrize("data", [b"[", b"{}", b'{"version": 1}', b"\xff", b'{"x":' + b"[" * 99999])
def test_an_answer_that_is_not_understood_is_an_error_that_says_so(
    state: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(msgspec.json, "encode", lambda _answer: data)
    with StatusSocket(state), pytest.raises(StateError, match="of another version; restart it"):
        ask(state)


def test_somebody_who_asks_and_never_listens_does_not_keep_others_from_an_answer(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    monkeypatch.chdir(state)
    many = tuple(f"device-{number}" for number in range(100_000))  # more than a socket keeps for who does not read
    with StatusSocket(state) as answering, socket.socket(socket.AF_UNIX) as silent:
        answering.tell(msgspec.structs.replace(AGGREGATOR, devices=many))
        silent.connect("status.sock")
        assert silent.recv(1) == b"{"  # its turn has come
        monkeypatch.setattr(module, "_TIMEOUT_S", WAIT_S)
        answer = ask(state)
        assert answer is not None
        assert isinstance(answer.status, AggregatorStatus)
        assert answer.status.devices == many


def test_a_program_works_where_there_can_be_no_socket_and_says_so(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (state / "status.sock").mkdir()
    with StatusSocket(state) as answering:
        answering.tell(DEVICE)
    (message,) = caplog.messages
    assert "status.sock: `distreal-edge status` cannot ask here: Is a directory" in message
    assert (state / "status.sock").is_dir()


# -- the verb ------------------------------------------------------------------------------------------------------


def test_a_device_is_told_in_a_few_short_lines(cli: Run, state: Path) -> None:
    with StatusSocket(state) as answering:
        answering.tell(DEVICE)
        shown = cli("status", "--state", str(state))
    assert (shown.returncode, shown.stderr) == (0, "")
    *lines, last = shown.stdout.splitlines()
    assert lines == [
        "pi-1 of garden: training, round 12",
        "  now        row 5 on 2 threads, 43% of the network; 128 images/s, loss 0.832",
        "  rounds     trains number 12, 57 mini-batches so far",
        "  can spend  2.40 cores, 812 MB, 61 degrees",
        "  updates    none waits to be sent; none was answered yet",
        "  images     600",
    ]
    assert last.startswith(f"  process    {os.getpid()}, serves for ")


def test_a_device_that_does_not_train_says_why(cli: Run, state: Path) -> None:
    refused = UpdateAnswer("u1", "refused", "late\x1b[2J: its round is closed", time.time() - 42)
    told = msgspec.structs.replace(
        DEVICE, row=None, threads=None, loss=None, state="idle", doing="idle", paused="quiet hours 22:00-07:00",
        safe_mode="crashed 3 times", spool=2, last_answer=refused, throttled=True, on_battery=True,
        memory_bytes=None, temperature_c=None, cores=0.0,
    )  # fmt: skip
    with StatusSocket(state) as answering:
        answering.tell(told)
        lines = cli("status", "--state", str(state)).stdout.splitlines()
    assert lines[1:6] == [
        "  rounds     number 12 was announced last; 57 mini-batches in the last one that it trained",
        "  can spend  0.00 cores, held down by heat or power, on battery",
        "  pauses     quiet hours 22:00-07:00",
        "  safe mode  crashed 3 times",
        "  updates    2 wait to be sent; the last answer, 42 s ago, was refused: late?[2J: its round is closed",
    ]


def test_a_device_that_has_not_trained_yet_counts_no_mini_batches(cli: Run, state: Path) -> None:
    with StatusSocket(state) as answering:
        answering.tell(msgspec.structs.replace(DEVICE, state="idle", mini_batches=0))
        assert "  rounds     number 12 was announced last\n" in cli("status", "--state", str(state)).stdout


def test_an_aggregator_says_whom_it_waits_for(cli: Run, state: Path) -> None:
    with StatusSocket(state) as answering:
        answering.tell(msgspec.structs.replace(AGGREGATOR, deadline_s=time.time() + 30.5))
        lines = cli("status", "--state", str(state)).stdout.splitlines()
    assert lines[0] == "aggregator of garden: collecting, round 3 of 9, 1 of 2 updates here"
    assert lines[1] == "  rounds     3 of 9; accuracy 87.50%"
    assert lines[2] in {f"  this one   1 of 2 answered, waits for pi-2; {left} s left" for left in range(31)}
    assert lines[3] == "  devices    3 here: pi-1, pi-2, pi-3"
    assert len(lines) == 5


def test_a_closing_measurement_is_no_round_of_the_training(cli: Run, state: Path) -> None:
    with StatusSocket(state) as answering:
        answering.tell(msgspec.structs.replace(AGGREGATOR, round=10))
        assert "  rounds     9 of 9, and the closing measurement; " in cli("status", "--state", str(state)).stdout


def test_an_aggregator_says_what_it_refused_and_why(cli: Run, state: Path) -> None:
    with StatusSocket(state) as answering:
        answering.tell(msgspec.structs.replace(AGGREGATOR, refused={"late": 2, "finite": 1}))
        assert "  refused    3 updates so far: 1 finite, 2 late" in cli("status", "--state", str(state)).stdout


def test_a_program_whose_loop_does_not_turn_is_busy_or_stuck(
    cli: Run, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StatusSocket(state) as answering:
        answering.tell(DEVICE)
        assert "stuck" not in cli("status", "--state", str(state)).stdout
        answering._told = (DEVICE, time.monotonic() - 3600.0)
        assert "  told       60 min ago: it is busy since, or stuck" in cli("status", "--state", str(state)).stdout


def test_programs_read_one_object_a_line(cli: Run, state: Path) -> None:
    with StatusSocket(state) as answering:
        answering.tell(DEVICE)
        shown = cli("status", "--state", str(state), "--json")
    (line,) = shown.stdout.splitlines()
    told = json.loads(line)
    assert (shown.returncode, told["running"], told["folder"]) == (0, True, str(state))
    assert told["status"] == {"role": "device", **msgspec.to_builtins(DEVICE)}
    shown = cli("status", "--state", str(state), "--json")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert json.loads(shown.stdout) == {"folder": str(state), "running": False}


def test_where_nothing_runs_is_one_line_and_exit_code_1(cli: Run, state: Path) -> None:
    with held_folder(state):  # a lock alone is no life
        shown = cli("status", "--state", str(state))
    assert (shown.returncode, shown.stdout) == (1, "")
    (line,) = shown.stderr.splitlines()
    assert line.startswith(f"distreal-edge: {state}: nothing is running there; ")


def test_at_a_file_nothing_is_running(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shown = cli("status", "--state", str(tmp_path / "file"))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "file: nothing is running there; " in shown.stderr


def test_a_configuration_names_the_folder(cli: Run, state: Path, tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text(
        f'federation = "f"\ndevice = "d"\nstate = "{state}"\n[data]\nname = "mnist"\n'
    )
    with StatusSocket(state):
        shown = cli("status", "--config", "device.toml")
        assert shown.stdout.splitlines()[0] == f"{state}: starting"
        assert cli("status", "--config", "device.toml", "--state", str(state)).returncode == 2
    assert cli("status", "--config", "none.toml").returncode == 2


# -- real programs -------------------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []

    def process(*arguments: str) -> subprocess.Popen[str]:
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "distreal_edge", *arguments],
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(SOURCES)},
            )
        )
        return children[-1]

    yield process
    for child in children:
        child.kill()
        child.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


@pytest.mark.parametrize("verb", ["run", "aggregate"])
def test_a_program_without_a_broker_says_so_until_it_is_killed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, verb: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = f'federation = "farm"\nstate = "state"\nbroker.port = {port}\n'
    if verb == "run":
        pixels, labels = np.zeros((8, 3, 8, 8), np.uint8), np.arange(8) % 2
        np.savez(tmp_path / "images.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
        text = common + 'device = "pi-1"\n[data]\nname = "npz"\nroot = "images.npz"\n'
    else:
        text = common + '[network]\nzoo = "resnet8"\n'
    (tmp_path / "config.toml").write_text(text)
    child = start(verb, "--config", "config.toml")
    state = tmp_path / "state"

    def told() -> bool:
        answer = ask(state) if state.exists() else None
        return answer is not None and answer.status is not None

    wait_for(told)
    answer = ask(state)
    assert answer is not None
    assert answer.status is not None
    assert answer.process_id == child.pid
    assert not answer.status.connected
    assert "broker" in answer.status.doing
    if isinstance(answer.status, DeviceStatus):
        assert (answer.status.device, answer.status.images, answer.status.state) == ("pi-1", 8, "idle")
        assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE  # a guest on its board
    child.send_signal(signal.SIGKILL)
    child.wait(WAIT_S)
    assert ask(state) is None
