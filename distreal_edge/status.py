"""What a running program tells of itself to whoever may use its state folder, through a Unix socket in there.

Why a socket and no file: a file would be written every second, to a card that wears, and would look alive after its
program has died. Nobody answers at a dead program's socket.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self

import msgspec

from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["AggregatorStatus", "Answer", "DeviceStatus", "StatusSocket", "UpdateAnswer", "ask"]

_log = logging.getLogger(__name__)
_SOCKET: Final = "status.sock"
_TIMEOUT_S: Final = 3.0
_LARGEST_BYTES: Final = 4 * 2**20
_RETRY_S: Final = 1.0


class UpdateAnswer(msgspec.Struct, frozen=True):
    """What the aggregator said last about an update of this device: `durable`, `refused` or `resend`."""

    uid: str
    kind: str
    reason: str | None
    time_s: float


class DeviceStatus(msgspec.Struct, frozen=True, tag_field="role", tag="device"):
    """What a device does. `doing` says it in a line for a person.

    `round` is the last one announced. `row`, `threads`, `macs_share`, `images_per_s` and `loss` are of the last
    mini-batch while a round is trained, else None; `mini_batches` are those of the last round that was trained.
    """

    federation: str
    device: str
    state: str
    doing: str
    connected: bool
    images: int
    round: int | None
    cores: float
    memory_bytes: float | None
    temperature_c: float | None
    throttled: bool
    on_battery: bool
    paused: str | None
    row: int | None
    threads: int | None
    macs_share: float | None
    images_per_s: float | None
    loss: float | None
    mini_batches: int
    spool: int
    last_answer: UpdateAnswer | None
    safe_mode: str | None


class AggregatorStatus(msgspec.Struct, frozen=True, tag_field="role", tag="aggregator"):
    """What an aggregator does. `doing` says it in a line for a person; `round` is the open one, or the last closed one.

    `rounds` train; a closing measurement, where there is one, is the round after them. `devices` are here, `selected`
    were asked in the open round, which ends at `deadline_s` (Unix time), and `answered` have. `refused` is how many
    updates were refused since the federation began, by reason.
    """

    federation: str
    state: str
    doing: str
    connected: bool
    round: int
    rounds: int
    accuracy: float | None
    devices: tuple[str, ...]
    selected: tuple[str, ...]
    answered: tuple[str, ...]
    deadline_s: float | None
    refused: dict[str, int] = msgspec.field(default_factory=dict)


class Answer(msgspec.Struct, frozen=True):
    """What is answered: the program, for how long it has served, and how old what it tells is.

    `status` is None until the program's loop has turned for the first time. It is told anew every second; an older one
    means that the loop is busy, or stuck.
    """

    version: str
    process_id: int
    uptime_s: float
    age_s: float
    status: DeviceStatus | AggregatorStatus | None


class StatusSocket:
    """Answer in a state folder, which the caller holds, while inside. Only the folder's owner and root are answered.

    Where there can be no socket the program works all the same, and the log says so.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing is there before entering."""
        self._folder = folder
        self._told: tuple[DeviceStatus | AggregatorStatus | None, float] = (None, 0.0)
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        self._told = (None, self._began_s)
        self._end.clear()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # Linux gives the file the mode of the socket: nobody else can connect at any moment.
        os.fchmod(self._socket.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        try:
            (self._folder / _SOCKET).unlink(missing_ok=True)  # a killed program's
            with _short_path(self._folder) as path:
                self._socket.bind(path)
            self._socket.listen(8)
        except OSError as error:
            _log.warning("%s: `distreal-edge status` cannot ask here: %s", self._folder / _SOCKET, error.strerror)
            self._socket.close()
            return self
        self._thread = threading.Thread(target=self._serve, name="status", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._socket.fileno() < 0:
            return
        with suppress(OSError):
            (self._folder / _SOCKET).unlink(missing_ok=True)
        self._end.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(_TIMEOUT_S)
        self._socket.close()

    def tell(self, status: DeviceStatus | AggregatorStatus) -> None:
        """Say what goes on now; costs next to nothing while nobody asks."""
        self._told = (status, time.monotonic())

    def _serve(self) -> None:
        while not self._end.is_set():
            try:
                asking, _ = self._socket.accept()
            except OSError:  # the end, or too many open files
                self._end.wait(_RETRY_S)
                continue
            with asking, suppress(OSError):
                asking.settimeout(_TIMEOUT_S)
                asking.sendall(msgspec.json.encode(self._answer()))

    def _answer(self) -> Answer:
        from distreal_edge import __version__  # noqa: PLC0415 - the package imports us before it has one

        (status, told_s), now_s = self._told, time.monotonic()
        return Answer(__version__, os.getpid(), now_s - self._began_s, now_s - told_s, status)


def ask(folder: Path) -> Answer | None:
    """Ask the program that holds a state folder; None when none is running there.

    Raises `StateError` when the folder is closed to us, or the program does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(_TIMEOUT_S)
        try:
            with _short_path(folder) as path:
                asking.connect(path)
            data = _read_all(asking)
            return msgspec.json.decode(data, type=Answer) if data else None  # it has just ended
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, ConnectionResetError):
            return None
        except PermissionError:
            raise StateError(f"{folder}: belongs to another user; ask as that user, or with sudo") from None
        except (TimeoutError, BlockingIOError):  # the latter when many have asked already
            raise StateError(
                f"{folder}: the program that runs there does not answer; see its log (journalctl), or restart it"
            ) from None
        except OSError as error:
            raise StateError(f"{folder}: cannot be asked for its status: {error.strerror}") from None
        except (msgspec.DecodeError, RecursionError):
            raise StateError(
                f"{folder}: the program that runs there is of another version; restart it, or ask with its own"
            ) from None


def _read_all(asking: socket.socket) -> bytes:
    parts: list[bytes] = []
    give_up_s = time.monotonic() + _TIMEOUT_S
    while part := asking.recv(65536):
        parts.append(part)
        if sum(map(len, parts)) > _LARGEST_BYTES:
            break
        if time.monotonic() >= give_up_s:  # a little now and then is no answer either
            raise TimeoutError
    return b"".join(parts)


@contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """Give a path of the folder's socket that is as short as a socket's must be: 107 bytes."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)
