"""How tests share a machine, and what those of more than one folder need: a broker as `keys` makes it, whole frames."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from distreal_edge.transport.embedded_broker import find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_INSTALLED = "/etc/mosquitto/distreal-edge"
_LISTENER = "\nlistener 8883\n"
_WAIT_S = 30.0

# Of this machine's cores, the share of each process that runs tests beside others.
_CORES = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
if "PYTEST_XDIST_WORKER" in os.environ:
    # Heeded by PyTorch, which is loaded later, here and in programs that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", str(_CORES))
# By default an example fails that takes a fifth of a second, as one may whose process has to wait for a core.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


# What two processes never do at the same time, longest first; all else they share file by file.
_GROUPS = {
    # Devices as programs step back behind whatever else computes, and a search has processes of its own: one at a time,
    # so that the other process of the tests leaves them a core.
    "programs": (
        "tests/chaos/",
        "tests/demo/test_demo.py",
        "tests/search/test_postgresql.py",
        "tests/search/test_study.py",
        "tests/cli/test_search_command.py",
        "tests/cli/test_status.py",
        "tests/aggregator/test_processes.py",
    ),
    # Made once for all of its files, or compiled so.
    "container": ("tests/systemd/",),
    "kernels for arm": ("tests/native/test_kernels_on_arm.py", "tests/native/test_steps_on_arm.py"),
}


def _group_of(test: str) -> str:
    return next((name for name, paths in _GROUPS.items() if test.startswith(paths)), test.partition("::")[0])


def _longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return groups first, then files with slow tests: processes that share them end at about the same time."""
    order = list(_GROUPS)
    slow = {_group_of(item.nodeid) for item in items if item.get_closest_marker("slow") is not None}

    def place(item: pytest.Item) -> int:
        group = _group_of(item.nodeid)
        return order.index(group) if group in order else len(order) + (group not in slow)

    return sorted(items, key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share files as `--dist loadfile` does, those of a group as one; xdist's own marks do nothing on pytest 9.2."""
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - only here, in the process that has several others

    class Sharing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group_of(nodeid)

    return Sharing(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        choices=("together", "alone"),
        help="run the tests that bear others beside them, or those that do not; without it, all of them",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("part")
    if part is None:
        return
    found: dict[str, list[pytest.Item]] = {"together": [], "alone": []}
    for item in items:
        found["together" if item.get_closest_marker("alone") is None else "alone"].append(item)
    items[:] = _longest_first(found.pop(part))
    for others in found.values():
        config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def cores() -> int:
    """Return how many cores a test may fill for long, such as by compiling."""
    return _CORES


@contextlib.contextmanager
def _mosquitto_with(keys: Path, folder: Path) -> Iterator[int]:
    program = find_mosquitto()
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    text = (keys / "broker" / "mosquitto.conf").read_text()
    assert text.count(_LISTENER) == 1
    assert text.count(_INSTALLED) == 5
    text = text.replace(_INSTALLED, str(keys / "broker")).replace(_LISTENER, f"\nlistener {port} 127.0.0.1\n")
    folder.mkdir(exist_ok=True)
    # Started by root mosquitto changes to a user of its own, who may not read the test's folder.
    (folder / "mosquitto.conf").write_text(("user root\n" if os.geteuid() == 0 else "") + text)
    command = [program, "-c", folder / "mosquitto.conf"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as broker:
        try:
            assert broker.stderr is not None
            said = ""
            for line in broker.stderr:
                said += line
                if " running" in line:
                    break
            assert " running" in said, said
            assert "Error" not in said
            # What it says from now on is not asked for, and must not fill the pipe.
            with (folder / "log").open("w") as log, subprocess.Popen(["cat"], stdin=broker.stderr, stdout=log):
                broker.stderr.close()
                yield port
                broker.terminate()
                broker.wait(_WAIT_S)
        finally:
            broker.kill()


@pytest.fixture(scope="session")
def mosquitto_with() -> Callable[[Path, Path], contextlib.AbstractContextManager[int]]:
    """Run a broker with the files in `keys/broker`, where only their place and the port are others.

    `mosquitto_with(keys, folder)` runs it in `folder`, and gives its port.
    """
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto")
    return _mosquitto_with


def _whole_of(frames: Iterable[bytes]) -> bytes | None:
    # By the table in docs/protocol.md, and not by the code that the program reads frames with.
    chunks = {int.from_bytes(frame[8:12]): frame[60:] for frame in frames}
    counts, digests = {frame[12:16] for frame in frames}, {frame[28:60] for frame in frames}
    if not chunks or len(chunks) < int.from_bytes(min(counts)):
        return None
    assert len(counts) == len(digests) == 1
    whole = b"".join(chunks[index] for index in range(len(chunks)))
    assert {hashlib.sha256(whole).digest()} == digests
    return whole


@pytest.fixture(scope="session")
def whole_of() -> Callable[[Iterable[bytes]], bytes | None]:
    """Put the frames of one blob together; None while some are missing."""
    return _whole_of
