"""What a device does next: a state machine without sockets, clocks, files or threads.

Events come in as method calls, with the time where it matters; what to do comes back as actions, in order.
`docs/device.md` has the states, and why the newest update goes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from distreal_edge.transport import Ack, Manifest

__all__ = [
    "Action",
    "AskForChunks",
    "DeviceRounds",
    "Forget",
    "OfferUpdate",
    "Phase",
    "Send",
    "StopTraining",
    "Train",
    "task_of",
]

FETCH_PATIENCE_S = 10.0
"""A model that has not grown by a chunk for so long is asked for again; in the same round each time twice as long."""
ACK_PATIENCE_S = 10.0
"""An update that was offered, or sent as asked, and not answered for so long is offered again; each time later."""
LONGEST_PATIENCE_S = 160.0
MOST_WAITING = 4
"""An aggregator that was away for long is interested in the newest rounds only, so that little is kept."""


def task_of(manifest: Manifest) -> str:
    """Return what tells a round's work from any other: its number and its model; sorted, newest last."""
    return f"{manifest.number:010d}-{manifest.model.digest[:16]}"


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
class OfferUpdate:
    """Offer an update, instead of whatever is being sent."""

    uid: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send these chunks of the update that was offered last, after those that are being sent.

    `sent`, `sending_failed` or `lost` says how it went, unless an `OfferUpdate` comes before.
    """

    uid: str
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove an update from the spool, and stop sending it."""

    uid: str


Action = AskForChunks | Train | StopTraining | OfferUpdate | Send | Forget


class DeviceRounds:
    """One device's way through the rounds.

    `waiting` are the updates found in the spool at the start, newest first, and `done` the tasks that they are for.

    While there is a connection and an update waits, one update is *at the front*: it was offered or sent and an answer
    is awaited, or it is being sent. A new update goes to the front at once. An answer that does not come makes room for
    the next one in turn, so that no update holds up the others.
    """

    def __init__(self, device: str, *, waiting: Iterable[str] = (), done: Iterable[str] = ()) -> None:
        """Start idle and unconnected."""
        self._device = device
        self._waiting = list(waiting)
        self._delivered: str | None = None
        self._done = set(done)
        self._connected = False
        self._manifest: Manifest | None = None
        self._fetching = False
        self._training: str | None = None
        self._trained: Manifest | None = None
        self._quiet_since = 0.0
        self._fetch_patience_s = FETCH_PATIENCE_S
        self._front: str | None = None
        self._asked_at: float | None = None  # since when an answer is awaited; None: the front is still being sent
        self._offered = False  # nothing was heard since the offer
        self._ack_patience_s = ACK_PATIENCE_S

    @property
    def phase(self) -> Phase:
        """What the device is busy with."""
        if self._training is not None:
            return Phase.TRAINING
        if self._fetching:
            return Phase.FETCHING
        return Phase.UPLOADING if self._waiting else Phase.IDLE

    @property
    def manifest(self) -> Manifest | None:
        """The newest round that was announced."""
        return self._manifest

    @property
    def fetching(self) -> bool:
        """Whether the newest round's model and table are wanted."""
        return self._fetching and self._connected

    # -- the connection ----------------------------------------------------------------------------------------------

    def connected(self, now: float) -> list[Action]:
        """Note that the session is there (again): offer what waits, and ask for what is missing."""
        self._connected = True
        self._quiet_since = now
        self._ack_patience_s = ACK_PATIENCE_S
        return [*self._give_way(), *self._offer_first(now), *self._ask_for_chunks()]

    def disconnected(self) -> None:
        """Note that the session is gone, and with it what was being sent."""
        self._connected = False
        self._front = self._asked_at = None

    # -- a round -----------------------------------------------------------------------------------------------------

    def announced(self, manifest: Manifest, now: float, *, live: bool = False) -> list[Action]:
        """Take in a round's manifest, which may be one that is known already.

        `live`: it was published now, and not kept by the broker. A known one then says that the aggregator is back, and
        did not hear what was sent to it meanwhile: the update at the front is offered again at once.
        """
        # Whoever published it is there, and may answer now what it did not answer before.
        self._ack_patience_s = ACK_PATIENCE_S
        if self._manifest is not None and manifest == self._manifest:
            if not live:
                return []
            return [*([] if self._front is None else self._offer(self._front, now)), *self._ask_for_chunks()]
        self._manifest = manifest
        if self._is_another(manifest):
            self._done, self._delivered = set(), None
        self._fetching = (
            not manifest.finished
            and self._device in manifest.selected
            and task_of(manifest) not in self._done
            and now < manifest.train_until_s
        )
        self._quiet_since = now
        self._fetch_patience_s = FETCH_PATIENCE_S
        return [*([] if self._training is None else [StopTraining()]), *self._ask_for_chunks()]

    def _is_another(self, manifest: Manifest) -> bool:
        """Say whether a round only looks like the one that was answered: its federation has begun anew since.

        An aggregator says the same of a round as long as it lasts, over restarts. What waits in the spool is good for
        either of them.
        """
        if self._trained is None or self._delivered is None or self._waiting:
            return False
        return task_of(manifest) == task_of(self._trained) and manifest != self._trained

    def chunk_arrived(self, now: float) -> None:
        """Note that the round's model or table grew."""
        self._quiet_since = now

    def blobs_complete(self, now: float) -> list[Action]:
        """Note that model and table of the newest round are there."""
        if not self._fetching or self._training is not None or self._manifest is None:
            return []
        self._fetching = False
        if now >= self._manifest.train_until_s:
            return []
        self._training, self._trained = task_of(self._manifest), self._manifest
        return [Train(self._manifest)]

    def trained(self, uid: str | None, now: float) -> list[Action]:
        """Note that training ended; its update `uid` is in the spool, or None when there is none."""
        task, self._training = self._training, None
        if uid is None or task is None:
            return []
        self._waiting.insert(0, uid)
        self._done = {task}
        if self._manifest is not None and task_of(self._manifest) == task:
            self._fetching = False  # announced anew with other words, too late to stop
        return [*self._give_way(), *self._offer_first(now)]

    # -- updates -----------------------------------------------------------------------------------------------------

    def sent(self, uid: str, now: float) -> None:
        """Note that the broker has taken all that was asked for of an update."""
        if uid == self._front:
            self._asked_at = now

    def sending_failed(self, uid: str, now: float) -> None:
        """Note that an update could not be sent whole; its turn comes again."""
        self.sent(uid, now)

    def lost(self, uid: str, now: float) -> list[Action]:
        """Note that an update is not in the spool any more, or cannot be read."""
        return self._forget(uid, now)

    def acknowledged(self, ack: Ack, now: float) -> list[Action]:
        """Take in the aggregator's answer to an update."""
        if ack.uid not in self._waiting:
            return self._do_again(now) if ack.kind == "resend" and ack.uid == self._delivered else []
        if ack.kind != "resend":
            self._ack_patience_s = ACK_PATIENCE_S
            self._delivered = ack.uid
            return self._forget(ack.uid, now)
        # Another one may be on its way by now, and would take this one's place at the aggregator.
        if ack.uid != self._front:
            return []
        if not ack.missing:
            # Said for every chunk that was on its way to an aggregator that knows nothing of it: one offer answers all.
            return [] if self._offered else self._offer(ack.uid, now)
        self._offered, self._asked_at = False, None
        self._ack_patience_s = ACK_PATIENCE_S
        return [Send(ack.uid, ack.missing)]

    def _do_again(self, now: float) -> list[Action]:
        """Train the open round anew: what was acknowledged of it is damaged at the aggregator, and gone here."""
        manifest = self._manifest
        if manifest is None or self._done != {task_of(manifest)} or self._training is not None:
            return []
        if manifest.finished or now >= manifest.train_until_s:
            return []
        self._done, self._delivered = set(), None
        self._fetching = True
        self._quiet_since = now
        return self._ask_for_chunks()

    def tick(self, now: float) -> list[Action]:
        """Let time pass; call it several times a second."""
        actions: list[Action] = []
        # A clock that is set back must not make us wait until it has caught up.
        self._quiet_since = min(self._quiet_since, now)
        if self._asked_at is not None:
            self._asked_at = min(self._asked_at, now)
        if self._fetching and self._manifest is not None:
            if now >= self._manifest.train_until_s:
                self._fetching = False
            elif self._connected and now - self._quiet_since >= self._fetch_patience_s:
                # On a slow line the chunks asked for are only late: ask less and less often.
                self._quiet_since = now
                self._fetch_patience_s = min(2.0 * self._fetch_patience_s, LONGEST_PATIENCE_S)
                actions.append(AskForChunks())
        if self._front is not None and self._asked_at is not None and now - self._asked_at >= self._ack_patience_s:
            self._ack_patience_s = min(2.0 * self._ack_patience_s, LONGEST_PATIENCE_S)
            following = (self._waiting.index(self._front) + 1) % len(self._waiting)
            actions.extend(self._offer(self._waiting[following], now))
        return actions

    def _ask_for_chunks(self) -> list[Action]:
        return [AskForChunks()] if self.fetching else []

    def _offer_first(self, now: float) -> list[Action]:
        return self._offer(self._waiting[0], now) if self._waiting and self._connected else []

    def _offer(self, uid: str, now: float) -> list[Action]:
        self._front, self._asked_at, self._offered = uid, now, True
        return [OfferUpdate(uid)]

    def _forget(self, uid: str, now: float) -> list[Action]:
        if uid not in self._waiting:
            return []
        self._waiting.remove(uid)
        if uid != self._front:
            return [Forget(uid)]
        self._front = self._asked_at = None
        return [Forget(uid), *self._offer_first(now)]

    def _give_way(self) -> list[Action]:
        """Forget the oldest when there are too many; the caller offers the first next."""
        self._front = self._asked_at = None
        surplus, self._waiting = self._waiting[MOST_WAITING:], self._waiting[:MOST_WAITING]
        return [Forget(uid) for uid in surplus]
