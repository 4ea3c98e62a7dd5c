"""What a device does next: a state machine without sockets, clocks, files or threads.

Events come in as method calls, with the time where it matters; what to do comes back as actions, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distreal_edge.transport import Ack, Manifest

__all__ = ["Action", "AskForChunks", "DeviceRounds", "Forget", "Phase", "Send", "StopTraining", "Train"]

FETCH_PATIENCE_S = 2.0
"""A model that has not grown by a chunk for so long is asked for again."""
ACK_PATIENCE_S = 10.0
"""An update that has not been answered for so long is sent again."""


class Phase(Enum):
    """What a device is busy with."""

    IDLE = "idle"
    FETCHING = "fetching"
    TRAINING = "training"
    UPLOADING = "uploading"


@dataclass(frozen=True, slots=True)
class AskForChunks:
    """Ask for the chunks of the round's model and table that are missing."""


@dataclass(frozen=True, slots=True)
class Train:
    """Train the round."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class StopTraining:
    """Stop after the mini-batch at hand; what comes of it is for a round that is over, and is thrown away."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send chunks of an update; `missing` empty means all of them."""

    uid: str
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove an update from the spool."""

    uid: str


Action = AskForChunks | Train | StopTraining | Send | Forget


class DeviceRounds:
    """One device's way through the rounds.

    `waiting` are the updates found in the spool at the start, and `answered_round` the newest round among them.
    """

    def __init__(self, device: str, *, waiting: tuple[str, ...] = (), answered_round: int = 0) -> None:
        """Start idle."""
        self._device = device
        self._waiting = list(waiting)
        self._answered_round = answered_round
        self._manifest: Manifest | None = None
        self._fetching = False
        self._training = False
        self._quiet_since = 0.0
        self._sent_at: float | None = None

    @property
    def phase(self) -> Phase:
        """What the device is busy with."""
        if self._training:
            return Phase.TRAINING
        if self._fetching:
            return Phase.FETCHING
        return Phase.UPLOADING if self._waiting else Phase.IDLE

    @property
    def manifest(self) -> Manifest | None:
        """The round that is being fetched, trained or was trained last."""
        return self._manifest

    def connected(self, now: float) -> list[Action]:
        """Note that the session is there (again): send what waits."""
        return self._send_first(now)

    def announced(self, manifest: Manifest, now: float) -> list[Action]:
        """Take in a round's manifest, which may be one that is known already."""
        if self._manifest is not None and manifest == self._manifest:
            return []
        actions: list[Action] = [StopTraining()] if self._training else []
        self._manifest = manifest
        self._fetching = (
            not manifest.finished
            and self._device in manifest.selected
            and manifest.number != self._answered_round
            and now < manifest.train_until_s
        )
        self._quiet_since = now
        return actions

    def chunk_arrived(self, now: float) -> list[Action]:
        """Note that the round's model or table grew."""
        self._quiet_since = now
        return []

    def blobs_complete(self, now: float) -> list[Action]:
        """Note that model and table are there."""
        if not self._fetching or self._training or self._manifest is None:
            return []
        self._fetching = False
        if now >= self._manifest.train_until_s:
            return []
        self._training = True
        return [Train(self._manifest)]

    def trained(self, uid: str | None, round_number: int, now: float) -> list[Action]:
        """Note that training ended; its update `uid` is in the spool, or None when there is none."""
        self._training = False
        if uid is None:
            return []
        self._waiting.append(uid)
        self._answered_round = max(self._answered_round, round_number)
        return self._send_first(now) if len(self._waiting) == 1 or self._sent_at is None else []

    def acknowledged(self, ack: Ack, now: float) -> list[Action]:
        """Take in the aggregator's answer to an update."""
        if ack.uid not in self._waiting:
            return []
        if ack.kind == "resend":
            self._sent_at = now
            return [Send(ack.uid, ack.missing)]
        self._waiting.remove(ack.uid)
        return [Forget(ack.uid), *self._send_first(now)]

    def tick(self, now: float) -> list[Action]:
        """Let time pass; call it about every second."""
        actions: list[Action] = []
        if self._fetching and self._manifest is not None:
            if now >= self._manifest.train_until_s:
                self._fetching = False
            elif now - self._quiet_since >= FETCH_PATIENCE_S:
                self._quiet_since = now
                actions.append(AskForChunks())
        if self._waiting and self._sent_at is not None and now - self._sent_at >= ACK_PATIENCE_S:
            actions.extend(self._send_first(now))
        return actions

    def sending_failed(self) -> None:
        """Note that the session broke while an update was sent; the next connection sends it again."""
        self._sent_at = None

    def _send_first(self, now: float) -> list[Action]:
        if not self._waiting:
            self._sent_at = None
            return []
        self._sent_at = now
        return [Send(self._waiting[0])]
