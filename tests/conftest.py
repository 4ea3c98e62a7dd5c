"""What tests of more than one folder need: a broker as `distreal-edge keys` would have it, frames put together."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from distreal_edge.transport.embedded_broker import find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_INSTALLED = "/etc/mosquitto/distreal-edge"
_LISTENER = "\nlistener 8883\n"
_WAIT_S = 30.0


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
