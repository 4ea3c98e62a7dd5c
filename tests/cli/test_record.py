"""`distreal-edge record`: whatever ends it, what it wrote is a trace."""

from __future__ import annotations

import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distreal_edge.device import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 60.0
SOURCES = Path(__file__).resolve().parents[2]
DEVICE = 'federation = "farm"\ndevice = "pi-1"\nstate = "state"\n[data]\nname = "mnist"\n[resources]\n'

Start = "Callable[..., subprocess.Popen[str]]"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []

    def record(*arguments: str, file_limit: int | None = None) -> subprocess.Popen[str]:
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "distreal_edge", "record", "--out", str(tmp_path / "trace.csv"), *arguments],
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(SOURCES)},
            )
        )
        if file_limit is not None:  # long before it has imported what it needs
            resource.prlimit(children[-1].pid, resource.RLIMIT_FSIZE, (file_limit, file_limit))
        return children[-1]

    yield record
    for child in children:
        child.kill()
        child.communicate()


def wait_for_lines(path: Path, lines: int) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while time.monotonic() < give_up_s:
        if path.exists() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.02)
    pytest.fail(f"{path} never had {lines} lines")


def test_a_recording_of_so_many_seconds_is_a_trace_of_this_machine(start: Start, tmp_path: Path) -> None:
    child = start("--seconds", "1")
    _, said = child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    assert (tmp_path / "trace.csv").read_text().startswith("seconds,cores,memory,temperature\n0.000,")
    trace = Trace.load(tmp_path / "trace.csv")
    assert trace.seconds[-1] <= 2.0
    assert 0.0 < trace.cores[0] <= len(os.sched_getaffinity(0))
    memory_bytes = trace.memory_bytes_at(0.0)
    assert memory_bytes is not None
    assert 1e6 < memory_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert said.splitlines()[0] == f"recording to {tmp_path}/trace.csv"
    assert re.fullmatch(r".*trace.csv: \d+ lines? over 1\.\d s", said.splitlines()[-1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_whatever_ends_a_recording_leaves_a_trace(
    start: Start, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    child = start()
    wait_for_lines(tmp_path / "trace.csv", 2)
    child.send_signal(number)
    _, said = child.communicate(timeout=WAIT_S)
    assert child.returncode == code
    assert "Traceback" not in said
    assert len(Trace.load(tmp_path / "trace.csv").seconds) >= 1
    assert (tmp_path / "trace.csv").read_text().endswith("\n")


def test_a_terminal_that_is_closed_ends_a_recording_in_order(tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    code = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\nfrom distreal_edge.cli import main; main()"
    arguments = ["record", "--out", str(tmp_path / "trace.csv")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=end, stdout=end, stderr=end, start_new_session=True, cwd=SOURCES
    ) as child:
        os.close(end)
        wait_for_lines(tmp_path / "trace.csv", 2)
        os.close(terminal)
        assert child.wait(WAIT_S) == 0


def test_a_file_that_is_there_is_never_touched(start: Start, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("the recording of last week\n")
    child = start("--seconds", "1")
    _, said = child.communicate(timeout=WAIT_S)
    assert child.returncode == 2
    assert "trace.csv: is there already; remove it, or give another name" in said
    assert (tmp_path / "trace.csv").read_text() == "the recording of last week\n"


def test_a_full_disk_ends_a_recording_that_is_whole_so_far(start: Start, tmp_path: Path) -> None:
    # Room for the header, a line, and a part of another, which comes after five seconds at the latest.
    child = start(file_limit=len("seconds,cores,memory,temperature\n") + 45)
    _, said = child.communicate(timeout=WAIT_S)
    assert child.returncode == 8
    assert said.splitlines()[-1].startswith(f"distreal-edge: {tmp_path}/trace.csv: cannot be written: ")
    assert len(Trace.load(tmp_path / "trace.csv").seconds) == 1


def test_the_owners_limits_are_in_the_trace_when_they_are_given(start: Start, tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text(DEVICE + f'pause_file = "{tmp_path}/pause"\n')
    (tmp_path / "pause").touch()
    child = start("--seconds", "0.5", "--config", "device.toml")
    _, said = child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    assert "training pauses: " in said
    assert Trace.load(tmp_path / "trace.csv").cores == (0.0,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "nowhere/trace.csv"], "--out nowhere/trace.csv: cannot be made: No such file or directory"),
        (["--out", "trace.csv", "--config", "device.toml"], "device.toml: its board follows a trace"),
        (["--out", "trace.csv", "--config", "none.toml"], "none.toml: cannot read the configuration"),
        (["--out", "trace.csv", "--interval", "0.1"], "'--interval': 0.1 is not in the range"),
        (["--out", "trace.csv", "--seconds", "nan"], "'--seconds': nan is not a number"),
        ([], "Missing option '--out'"),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing_behind(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "device.toml").write_text(DEVICE + 'trace = "some.csv"\n')
    shown = cli("record", *arguments)
    assert shown.returncode == 2
    (line,) = shown.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "trace.csv").exists()
