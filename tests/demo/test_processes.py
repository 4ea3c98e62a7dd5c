"""Children against the real kernel: nobody is left, whoever is killed, however."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from distreal_edge.demo import Processes
from distreal_edge.demo.processes import last_lines
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND_S = 20.0

# A program with a child of its own, both of which say where they are and wait.
TREE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
# The same, deaf to SIGTERM, and without a child.
DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
# A parent as the demo is one: children, and an end in order on signals.
PARENT = """
import sys, time
from pathlib import Path
from distreal_edge.demo.processes import Processes
from distreal_edge.demo.signals import Interruption
folder = Path(sys.argv[1])
with Interruption() as interruption, Processes(grace_s=1.0) as processes:
    for name in ("a", "b"):
        processes.start(name, [sys.executable, "-S", "-c", sys.argv[2], str(folder / name)], folder / f"{name}.log")
    (folder / "started").touch()
    while not interruption.name:
        time.sleep(0.02)
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up_s = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < give_up_s, f"not within {BOUND_S:g} s: {what}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", code, *arguments]


def pids(path: Path) -> list[int]:
    wait_for(path.exists, f"{path.name} started")
    return [int(word) for word in path.read_text(encoding="utf-8").split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_parent_ends_the_whole_tree(tmp_path: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), TREE])
    everybody = [*pids(tmp_path / "a"), *pids(tmp_path / "b")]
    assert len(everybody) == 4
    parent.send_signal(number)
    assert parent.wait(BOUND_S) == 0
    wait_for(lambda: all(gone(pid) for pid in everybody), "the end of all children")


def test_killing_the_parent_kills_its_children(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), DEAF])
    everybody = [*pids(tmp_path / "a"), *pids(tmp_path / "b")]
    parent.kill()
    parent.wait(BOUND_S)
    wait_for(lambda: all(gone(pid) for pid in everybody), "the end of all children")


def test_a_child_that_is_deaf_to_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    with Processes(grace_s=0.3) as processes:
        processes.start("deaf", python(DEAF, str(tmp_path / "deaf")), tmp_path / "deaf.log")
        (pid,) = pids(tmp_path / "deaf")
        began_s = time.monotonic()
    assert gone(pid)
    assert time.monotonic() - began_s < 5.0


def test_a_child_that_ends_is_noticed_with_its_code_and_its_last_lines(tmp_path: Path) -> None:
    with Processes() as processes:
        processes.start("three", python("import sys; print('one\\n\\ntwo'); sys.exit(3)"), tmp_path / "three.log")
        processes.start("killed", python("import os; os.kill(os.getpid(), 9)"), tmp_path / "killed.log")
        wait_for(lambda: len(processes.ended()) == 2, "both ends")
        ended = {end.name: end for end in processes.ended()}
        assert (ended["three"].code, ended["killed"].code) == (3, -9)
        assert last_lines(ended["three"].log, 5) == ("one", "two")
        assert last_lines(ended["three"].log, 1) == ("two",)


def test_children_are_out_of_reach_of_the_terminals_signals(tmp_path: Path) -> None:
    with Processes(grace_s=0.3) as processes:
        processes.start("child", python(DEAF, str(tmp_path / "child")), tmp_path / "child.log")
        (pid,) = pids(tmp_path / "child")
        assert os.getsid(pid) == os.getpgid(pid) == pid


def test_a_log_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    with Processes() as processes, pytest.raises(StateError, match="cannot start it with its log"):
        processes.start("a", python("pass"), tmp_path / "missing" / "a.log")


def test_a_log_that_is_not_there_has_no_lines() -> None:
    assert last_lines(Path("/nowhere/at/all.log"), 3) == ()
