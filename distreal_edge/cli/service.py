"""What the long-running verbs share: a clean end on a signal, patience with a broker, the way to it."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from distreal_edge.cli.notify import is_supervised, notify
from distreal_edge.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distreal_edge.config import Broker
    from distreal_edge.transport import TlsFiles

__all__ = ["broker_arguments", "handed_over_files", "keep_serving", "service_files", "stopping_on_signals"]

_log = logging.getLogger(__name__)
# Where systemd's units look for them.
_SERVICES: Final = (Path("/etc/distreal-edge/device.toml"), Path("/etc/distreal-edge/federation.toml"))
_CREDENTIALS: Final = tuple(Path(f"/run/credentials/distreal-edge-{role}.service") for role in ("device", "aggregator"))
# What systemd, and an owner at the terminal, can count on; a process of lowest priority needs some of it to get going.
_END_WITHIN_S = 2.0
_MARGIN_S = 0.5
_FIRST_RETRY_S = 30.0
_LONGEST_RETRY_S = 900.0
_TURN_S = 0.2


@contextmanager
def stopping_on_signals(
    *, forced: bool = False, asked_first: Callable[[], object] = lambda: None
) -> Iterator[threading.Event]:
    """Give an event that SIGTERM, SIGINT and SIGHUP set, so that the program can end cleanly.

    `forced`: the process is gone two seconds after the signal, whatever it is doing then; native code cannot be
    interrupted, nor a broker be hurried that does not answer. What is durable must be so at any instant. `asked_first`
    is called in a thread of its own before anything else is done. A second signal ends it at once. After Ctrl-C the
    clean end is a `KeyboardInterrupt`, so that a shell script stops as well.
    """
    stop = threading.Event()
    interrupted = False
    before: dict[signal.Signals, Any] = {}
    # A handler runs between any two instructions of the main thread, which may hold the lock of anything else.
    asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def ask(number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = number == signal.SIGINT
        asked.put(130 if interrupted else 0)
        restore()

    def end() -> None:
        code = asked.get()
        if code is None:
            return
        if forced:
            # Not waited for: a disk may be slow.
            threading.Thread(target=asked_first, name="asked", daemon=True).start()
        stop.set()
        if forced:
            notify("STOPPING=1", "STATUS=stopping")
            time.sleep(_END_WITHIN_S - _MARGIN_S)
            os._exit(code)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    threading.Thread(target=end, name="end", daemon=True).start()
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # A SIGHUP that was ignored from the start (nohup) stays ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, ask)
        yield stop
    finally:
        restore()
        asked.put(None)
    if interrupted:
        raise KeyboardInterrupt


def keep_serving(serve: Callable[[], object], stop: threading.Event, turn: Callable[[str], None]) -> None:
    """Serve until the end; under a service manager also after the broker has refused us, which its owner may mend.

    At a terminal the refusal, a `TransportError`, is raised: whoever typed the command can mend it best. `turn` is
    called with what is waited for.
    """
    delay_s = _FIRST_RETRY_S
    while True:
        began_s = time.monotonic()
        try:
            serve()
        except TransportError as error:
            if not is_supervised():
                raise
            if time.monotonic() - began_s > _LONGEST_RETRY_S:
                delay_s = _FIRST_RETRY_S
            _log.warning("%s; tries again in %.0f s", error, delay_s)
            again_s = time.monotonic() + delay_s
            while not stop.is_set() and time.monotonic() < again_s:
                turn(f"refused, tries again every {delay_s:.0f} s: {error}")
                time.sleep(_TURN_S)
            delay_s = min(2.0 * delay_s, _LONGEST_RETRY_S)
            if not stop.is_set():
                continue
        return


def broker_arguments(broker: Broker) -> dict[str, Any]:
    """Return what a `Session` needs to know about the broker.

    Raises `ConfigError` when it would be talked to openly, or the files for TLS cannot be used.
    """
    arguments: dict[str, Any] = {
        "host": broker.host,
        "port": broker.tcp_port,
        "tls": handed_over_files(broker),
        "allow_plaintext": broker.allow_plaintext,
    }
    if not broker.allow_plaintext:
        from distreal_edge.transport import Session  # noqa: PLC0415 - --help must be quick

        Session(client_id="check", **arguments)  # connects to nothing until it is entered
    return arguments


def handed_over_files(broker: Broker) -> TlsFiles | None:
    """Return the files for TLS where systemd has put them for us, if it did: `tls/ca.pem` is its `tls_ca.pem`.

    A service's user finds them also outside the service while it runs, in place of files that are root's alone.
    """
    files = broker.tls
    if files is None:
        return None
    return replace(files, ca=_found(files.ca), certificate=_found(files.certificate), key=_found(files.key))


def _found(path: Path) -> Path:
    name = f"{path.parent.name}_{path.name}"
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    places = [Path(folder)] if folder else [] if os.access(path, os.R_OK) else list(_CREDENTIALS)
    return next((place / name for place in places if os.access(place / name, os.R_OK)), path)


def service_files() -> list[Path]:
    """Return the configurations of this machine's services: of a device, of an aggregator, both or none."""
    return [path for path in _SERVICES if path.exists()]
