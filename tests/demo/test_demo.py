"""The whole demo in miniature: a real broker, real processes, real files."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from rich.console import Console

from distreal_edge.cli import main
from distreal_edge.demo import run_demo
from distreal_edge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distreal_edge.demo import Scenario

BOUND_S = 60.0

MINIATURE = Path(__file__).with_name("miniature.py")


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up_s = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < give_up_s, f"not within {BOUND_S:g} s: {what}"
        time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def started(tmp_path: Path, images: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a demo that would run for minutes, and wait until it is under way; make sure that it is gone at the end."""
    programs: list[subprocess.Popen[bytes]] = []

    def start(*, training: bool = False, **options: object) -> subprocess.Popen[bytes]:
        program = subprocess.Popen(
            [sys.executable, str(MINIATURE), str(images), str(tmp_path / "report"), "50"],
            **options,  # type: ignore[call-overload]
        )
        programs.append(program)
        states = tmp_path / "report" / "state"
        sign = "pi-*/steps.csv" if training else "*/lock"

        def under_way() -> bool:
            return sum(training is False or path.stat().st_size > 200 for path in states.glob(sign)) >= 2

        wait_for(lambda: program.poll() is not None or under_way(), "training" if training else "processes")
        assert program.poll() is None
        return program

    yield start
    for program in programs:
        program.kill()
        program.wait()


@pytest.mark.slow
def test_the_demo_trains_and_leaves_a_report_with_pictures(tmp_path: Path, small: Scenario) -> None:
    # Python's own tracker of shared memory, which other tests may have started, stays.
    before = {*psutil.Process().children(recursive=True)}
    folder = tmp_path / "report"
    output = io.StringIO()
    report = run_demo(small, folder, Console(file=output, width=100))
    text = output.getvalue()
    assert report.outcome == "finished", text
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert content["outcome"] == "finished"
    assert content["schema"] == 1
    assert [entry["round"] for entry in content["training"]["rounds"]] == [1, 2]
    assert content["training"]["evidence"]["every_device_answered_every_round"]
    assert content["training"]["images"] == sum(device["images"] for device in content["training"]["devices"])
    # Scored once more on all test images, of which the rounds took a part.
    assert (content["evaluated_images"], content["training"]["evaluated_images"]) == (400, 100)
    assert content["accuracy"] > 0.9
    assert content["table_shares"][-1] == 1.0
    for name in ("accuracy.png", "cores-and-rows.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for name in ("aggregator", "pi-1", "pi-2"):
        assert (folder / "logs" / f"{name}.log").stat().st_size > 0
    assert "round 2 of 2" in text
    assert "pi-2: training" in text
    assert "Every device returned an update in every round." in text
    assert {*psutil.Process().children(recursive=True)} <= before


@pytest.mark.slow
def test_a_signal_in_a_round_ends_everything_and_leaves_a_report(
    tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    program = started(training=True, stdout=subprocess.DEVNULL)
    family = psutil.Process(program.pid).children(recursive=True)
    assert len(family) >= 4  # broker, aggregator, two devices
    program.send_signal(signal.SIGTERM)
    assert program.wait(BOUND_S) == 130
    assert not [process for process in family if alive(process)]
    content = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert content["outcome"] == "interrupted"
    assert "SIGTERM" in content["problem"]


@pytest.mark.slow
def test_killing_the_demo_leaves_nobody_behind(started: Callable[..., subprocess.Popen[bytes]]) -> None:
    program = started(stdout=subprocess.DEVNULL)
    family = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    wait_for(lambda: not [process for process in family if alive(process)], "the end of everybody")


@pytest.mark.slow
def test_a_device_that_dies_is_noticed_and_named_with_its_log(
    tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    program = started(stdout=subprocess.PIPE)
    family = psutil.Process(program.pid).children(recursive=True)
    (device,) = [process for process in family if any("pi-1.toml" in word for word in process.cmdline())]
    device.kill()
    output, _ = program.communicate(timeout=BOUND_S)
    assert program.returncode == 1
    content = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert content["outcome"] == "failed"
    assert "pi-1 ended too early (signal 9)" in content["problem"]
    assert str(tmp_path / "report" / "logs" / "pi-1.log") in content["problem"]
    assert b"The last lines of" in output
    assert not [process for process in family if alive(process)]


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_gives_the_terminal_back(
    tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    controller, terminal = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                shown.extend(os.read(controller, 65536))
            except OSError:  # EIO: the other side is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"}
    program = started(stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, env=environment)
    os.close(terminal)
    wait_for(lambda: b"pi-2" in shown and b"idle" in shown, "a frame with a device that is there")
    # What a terminal does at Ctrl-C: a signal to its whole foreground group.
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait(BOUND_S) == 130
    reader.join(BOUND_S)
    os.close(controller)
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l") >= 0  # the cursor is shown again
    assert b"Traceback" not in shown


def test_missing_images_are_an_error_before_anything_starts(tmp_path: Path, small: Scenario) -> None:
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        run_demo(replace(small, data="fashion-mnist", root=str(tmp_path)), tmp_path / "report", Console())
    assert not (tmp_path / "report").exists()


def test_a_missing_package_is_an_error_before_anything_starts(
    tmp_path: Path, small: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util  # noqa: PLC0415

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"needs matplotlib .* pip install 'distreal-edge\[plots\]'"):
        run_demo(small, tmp_path / "report", Console())
    assert not (tmp_path / "report").exists()


def test_a_folder_of_somebody_else_is_refused_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    monkeypatch.setenv("DISTREAL_EDGE_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["distreal-edge", "demo", "--report", str(tmp_path)])
    monkeypatch.setattr("distreal_edge.demo.run.check_needs", lambda _: None)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "not empty and holds no report" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
