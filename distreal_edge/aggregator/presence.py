"""Which of a device's states count: its connections may end in another order than they began."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distreal_edge.transport import DeviceState

__all__ = ["Presence"]

_MOST_DEVICES = 20_000


class Presence:
    """Remember the newest connection of every device."""

    def __init__(self) -> None:
        """Know nobody."""
        self._sessions: dict[str, int] = {}

    def counts(self, device: str, state: DeviceState) -> bool:
        """Return whether a state is to be believed: not the will of a connection that another has followed.

        A device that says anything but `offline` is there, whatever its number: its state folder may have been wiped.
        """
        if state.state == "offline":
            if state.session < self._sessions.get(device, 0):
                return False
            self._sessions.pop(device, None)
        elif device in self._sessions or len(self._sessions) < _MOST_DEVICES:
            self._sessions[device] = state.session
        return True
