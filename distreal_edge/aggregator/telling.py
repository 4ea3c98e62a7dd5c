"""What others see of the aggregator: its health, its status, and in the log what it waits for."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from distreal_edge.status import AggregatorStatus
from distreal_edge.transport import AggregatorHealth, encode
from distreal_edge.words import count_of, round_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.aggregator.closing import Record
    from distreal_edge.aggregator.rounds import AggregatorRounds
    from distreal_edge.status import StatusSocket
    from distreal_edge.transport import Session, Topics

__all__ = ["Telling", "closed_line", "missing_line", "waiting_for"]

_log = logging.getLogger(__name__)
_SAY_WAITING_S = 10.0
_MOST_NAMES = 5


def waiting_for(rounds: AggregatorRounds) -> str:
    """Return what keeps the next round from opening, in a line; empty while a round is open, or nothing does."""
    if not rounds.connected:
        return "waiting for the broker"
    here, least = len(rounds.present), rounds.settings.least_devices
    if rounds.open is None and here < least:
        return f"waiting for devices: {here} of at least {least} are here"
    return ""


def missing_line(rounds: AggregatorRounds, now: float) -> str:
    """Return whose updates the open round waits for, and for how long yet, in a line."""
    opened = rounds.open
    assert opened is not None
    missing = sorted(set(opened.selected) - rounds.answered)
    names = ", ".join(missing[:_MOST_NAMES]) + (", ..." if len(missing) > _MOST_NAMES else "")
    left_s = max(0.0, opened.deadline_s - now)
    return f"round {opened.number}: waiting for {count_of(len(missing), 'device')} ({names}), {left_s:.0f} s left"


def closed_line(record: Record) -> str:
    """Return what came of a round, in a line."""
    accuracy, after = record.accuracy, record.evaluated_round
    part = "" if record.evaluated_share == 1.0 else f" with the {record.evaluated_share:.0%} that was trained so far"
    scored = "" if accuracy is None else f", accuracy {100 * accuracy:.2f} % after round {after}{part}"
    answered = f"{len(record.answered)} of {count_of(len(record.selected), 'device')}"
    return f"round {record.round} closed: {answered}, {count_of(record.images, 'image')}{scored}"


class Telling:
    """Tell what goes on: to the broker, to whoever asks at the status socket, to `tell`, and to the log."""

    def __init__(
        self,
        *,
        session: Session,
        topics: Topics,
        status_socket: StatusSocket,
        rounds: AggregatorRounds,
        accuracy: float | None,
        tell: Callable[[str], None],
        refusals: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """Begin between rounds; `accuracy` is that of the newest model that was evaluated.

        `refusals` says how many updates were refused, by reason.
        """
        self._session = session
        self._topics = topics
        self._status_socket = status_socket
        self._rounds = rounds
        self._tell = tell
        self._refusals = refusals
        self._said, self._say_again_s = "", 0.0
        self.phase = "waiting"
        self.trouble = ""
        self.accuracy = accuracy

    def enter(self, phase: str) -> None:
        """Begin a phase, and tell of it at once."""
        self.phase = phase
        self.turn()
        self.publish()

    def turn(self) -> None:
        """Give `tell` its line."""
        self._tell(self.status())

    def status(self) -> str:
        """Return what goes on, in a line for a person."""
        if self.trouble:
            return f"waiting for room: {self.trouble}"
        opened = self._rounds.open
        if opened is None or not self._rounds.connected:
            return waiting_for(self._rounds) or self.phase
        answered = f"{len(self._rounds.answered)} of {count_of(len(opened.selected), 'update')} here"
        return f"{self.phase}, {round_of(opened.number, self._rounds.settings.number)}, {answered}"

    def publish(self) -> None:
        """Tell the broker and the status socket."""
        opened = self._rounds.open
        health = AggregatorHealth(
            time_s=time.time(),
            round=self._rounds.done if opened is None else opened.number,
            rounds=self._rounds.settings.number,
            phase=self.phase,  # type: ignore[arg-type]
            accuracy=self.accuracy,
            selected=() if opened is None else opened.selected,
            answered=tuple(sorted(self._rounds.answered)),
        )
        self._session.publish_retained(self._topics.aggregator_health, encode(health), qos=0)
        self._status_socket.tell(
            AggregatorStatus(
                federation=self._topics.federation,
                state=self.phase,
                doing=self.status(),
                connected=self._rounds.connected,
                round=health.round,
                rounds=health.rounds,
                accuracy=self.accuracy,
                devices=tuple(sorted(self._rounds.present)),
                selected=health.selected,
                answered=health.answered,
                deadline_s=None if opened is None else opened.deadline_s,
                refused=self._refusals(),
            )
        )

    def say_waiting(self, now: float) -> None:
        """Never wait silently: say at once what is waited for when that changes, and again every few seconds."""
        opened = self._rounds.open
        waiting = f"waiting for room: {self.trouble}" if self.trouble else waiting_for(self._rounds)
        about = waiting or (f"round {opened.number}" if opened is not None else "")
        if about == self._said and time.monotonic() < self._say_again_s:
            return
        news = about != self._said
        self._said, self._say_again_s = about, time.monotonic() + _SAY_WAITING_S
        if waiting:
            _log.log(logging.ERROR if self.trouble else logging.INFO, "%s", waiting)
        elif opened is not None and not news:  # that it began was said already
            _log.info("%s", missing_line(self._rounds, now))
