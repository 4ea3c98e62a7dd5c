"""What systemd wants to hear of a service: that it serves, what it does, that it still gets on, that it ends.

The protocol is sd_notify(3): lines in a datagram to the socket that `NOTIFY_SOCKET` names. Without one, as at a
terminal, nothing is sent.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import threading
from typing import TYPE_CHECKING, Self

from distreal_edge.errors import printable
from distreal_edge.pulse import Pulse, Sign, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Service", "Watchdog", "is_supervised", "notify", "watchdog_interval_s"]

_SEND_TIMEOUT_S = 5.0


def is_supervised() -> bool:
    """Return whether a service manager waits to be notified."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(*lines: str) -> bool:
    """Tell the service manager; return whether it was told, or whether there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return True
    # An @ stands for the zero byte that an abstract address begins with.
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_SEND_TIMEOUT_S)  # it may be busy, but must not hold us up for ever
            sender.sendto("\n".join(lines).encode(errors="replace"), name)
    except OSError:
        return False
    return True


def watchdog_interval_s(environment: Mapping[str, str], process_id: int) -> float | None:
    """Return within how many seconds the service manager wants to be fed, or None when it has no watchdog for us."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if environment.get("WATCHDOG_PID", str(process_id)) != str(process_id):
        return None
    return int(microseconds) / 1e6


class Watchdog:
    """Feed at half the interval, as long as every pulse has shown life since the last time."""

    def __init__(self, pulses: Sequence[Pulse], feed: Callable[[], object], interval_s: float) -> None:
        """Prepare; `look` and `serve` do the work."""
        self._pulses = pulses
        self._feed = feed
        self._interval_s = interval_s
        self._before: list[Sign | None] = [None] * len(pulses)

    def look(self) -> float:
        """Feed if all are alive; return after how many seconds to look again, sooner while one gives no sign."""
        now = [pulse.sign() for pulse in self._pulses]
        if not all(map(is_alive, self._before, now)):
            return self._interval_s / 8.0
        self._before = now
        self._feed()
        return self._interval_s / 2.0

    def serve(self, end: threading.Event) -> None:
        """Look until `end` is set."""
        while not end.wait(self.look()):
            pass


class Service:
    """A context manager around a serving loop, which calls `turn` in every turn; it tells the service manager.

    `loop_must_turn`: the watchdog bites when the loop does not turn. Otherwise a long piece of work in a turn is fine,
    as long as it uses CPU time. `pulses` are other work that must get on.
    """

    def __init__(self, *pulses: Pulse, loop_must_turn: bool) -> None:
        """Prepare; nothing is sent before the first turn."""
        self._loop = Pulse(strict=loop_must_turn)
        self._pulses = (self._loop, *pulses)
        self._status: str | None = None
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self._working = self._loop.working()
        self._working.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._working.__exit__(None, None, None)

    def turn(self, status: str) -> None:
        """Note a turn of the loop, and what goes on. The first one says that the program serves."""
        self._loop.beat()
        if status == self._status:
            return
        ready = [] if self._status is not None else ["READY=1"]
        if notify(*ready, f"STATUS={printable(status)}"):
            self._status = status
            if ready:
                self._watch()

    def _watch(self) -> None:
        interval_s = watchdog_interval_s(os.environ, os.getpid())
        if interval_s is None or not is_supervised():
            return
        # It bites with SIGABRT: the journal then says what every thread was doing.
        faulthandler.enable()
        watchdog = Watchdog(self._pulses, lambda: notify("WATCHDOG=1"), interval_s)
        threading.Thread(target=watchdog.serve, args=(self._end,), name="watchdog", daemon=True).start()
