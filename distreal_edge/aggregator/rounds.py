"""When a round opens and closes: a state machine without sockets, clocks, files or threads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AggregatorRounds", "Close", "Finish", "Open", "RoundSettings", "chosen_line", "staleness"]

SETTLE_S: Final = 1.0
"""After the broker is back, devices that are there have so long to be seen before a round opens without them."""
RETURN_S: Final = 12.0
"""When broker or aggregator come back during a round, devices have at least so long to bring their updates: more than
the ten seconds after which they send again what was not answered."""
MOST_DEVICES: Final = 10_000
"""As many as a manifest can name."""
_ROUNDING: Final = 1e-9
"""So that 1.1 times 10 devices are 11."""


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """How many rounds, how long and with whom; see `config.Rounds`. All times are seconds.

    `quorum` is the share of the devices needed whose updates close a round. `over_selection` times `devices_per_round`
    are selected where so many are there. `closing_measurement` adds a round at the end in which devices only measure
    batch-norm statistics.
    """

    number: int
    seconds: float
    upload_seconds: float
    least_devices: int
    devices_per_round: int | None
    seed: int
    closing_measurement: bool = False
    quorum: float = 1.0
    over_selection: float = 1.0

    def __post_init__(self) -> None:
        """Check that the settings fit together."""
        if self.upload_seconds >= self.seconds:
            raise ConfigError(
                f"rounds.upload_seconds ({self.upload_seconds}) must be less than rounds.seconds ({self.seconds})"
            )
        if self.devices_per_round is not None and self.devices_per_round < 1:
            raise ConfigError("rounds.devices_per_round must be at least 1")
        if not 0.0 < self.quorum <= 1.0:
            raise ConfigError(f"rounds.quorum ({self.quorum}) must be above 0 and at most 1")
        if self.over_selection < 1.0:
            raise ConfigError(f"rounds.over_selection ({self.over_selection}) must be at least 1")

    @property
    def last(self) -> int:
        """The number of the last round."""
        return self.number + self.closing_measurement

    def enough(self, selected: int) -> int:
        """Return how many updates close a round of so many devices before its deadline."""
        needed = selected if self.devices_per_round is None else min(selected, self.devices_per_round)
        return max(1, math.ceil(self.quorum * needed - _ROUNDING))

    def to_select(self, present: int) -> int:
        """Return how many of the devices that are there take part in a round."""
        if self.devices_per_round is None:
            return present
        return min(present, MOST_DEVICES, math.ceil(self.devices_per_round * self.over_selection - _ROUNDING))


def chosen_line(settings: RoundSettings, *, selected: int, present: int) -> str:
    """Return in words why these devices take part in a round."""
    if selected == present:
        return f"all {present} that are here" if present > 1 else "the only one here"
    spare = selected - min(selected, settings.devices_per_round or selected)
    return f"{selected} at random of the {present} that are here" + (f", {spare} to spare" if spare else "")


def staleness(of_round: int | None, *, done: int) -> int:
    """Return by how many rounds an update is late: 1 for the one that was closed last. It is counted, never averaged.

    A change belongs to the model that it was trained on; added to a later one it pulls that back to where the
    federation was. `of_round` None: nobody knows yet, as its first chunk was refused; then it is taken for the last.
    """
    return 1 if of_round is None else max(1, done - of_round + 1)


@dataclass(frozen=True, slots=True)
class Open:
    """Announce a round."""

    number: int
    selected: tuple[str, ...]
    opened_s: float
    train_until_s: float
    deadline_s: float
    measure_only: bool


@dataclass(frozen=True, slots=True)
class Close:
    """Average what has come, store and evaluate; then call `closed`. `why` says in words what closed the round."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Tell everybody that the training is over, then call `finished`; said again until then."""


class AggregatorRounds:
    """The rounds of one federation.

    `done` rounds are closed already; `reopened` is the round that was open when the aggregator stopped, with the
    devices that had answered. `present` holds the devices that are there, each with how many images it has.

    Nothing opens while the broker is out of reach. A round whose deadline passes then, or shortly after, stays open
    until devices have had time to upload since it was back, though never for longer than another round. A clock that is
    set back does not make a round longer.
    """

    def __init__(
        self, settings: RoundSettings, *, done: int = 0, reopened: Open | None = None, answered: Iterable[str] = ()
    ) -> None:
        """Continue after `done` rounds, without a connection to the broker."""
        self.settings = settings
        self.present: dict[str, int] = {}
        self.done = done
        self.open: Open | None = reopened
        self.answered: set[str] = set(answered)
        self._connected_s: float | None = None
        self._began_s: float | None = None
        # A board without a battery may wake up before it opened the round: that counts as set back.
        self._last_s = -math.inf if reopened is None else reopened.opened_s
        self._behind_s = 0.0  # by how much the clock was set back since the round opened
        self._closing = False
        self._finished = False

    @property
    def connected(self) -> bool:
        """Whether the broker is within reach."""
        return self._connected_s is not None

    def broker_back(self, now: float) -> None:
        """Note that there is a connection to the broker; who is there will be told anew."""
        self._connected_s = self._time(now)

    def broker_gone(self) -> None:
        """Note that the connection is lost, and with it the knowledge of who is there."""
        self._connected_s = None
        self.present.clear()

    def device_seen(self, device: str, images: int = 0) -> bool:
        """Note that a device is there and can train; return False when there are too many already."""
        if device not in self.present and len(self.present) >= MOST_DEVICES:
            return False
        self.present[device] = images
        return True

    def device_gone(self, device: str) -> None:
        """Note that a device went away; what it owes this round it may still bring before the deadline."""
        self.present.pop(device, None)

    def update_stored(self, device: str) -> None:
        """Note that a device's update for the open round is safe."""
        self.answered.add(device)

    def closed(self) -> None:
        """Note that the round that `Close` named is averaged and stored."""
        assert self.open is not None
        self.done = self.open.number
        self.open = None
        self.answered = set()
        self._closing = False

    def not_opened(self) -> None:
        """Note that the round that `Open` named could not be stored, and that nobody has heard of it."""
        self.open = None

    def not_closed(self) -> None:
        """Note that the round that `Close` named has to wait: what came of it could not be stored yet."""
        self._closing = False

    def finished(self) -> None:
        """Note that everybody was told what `Finish` asks for."""
        self._finished = True

    def tick(self, now: float) -> list[Open | Close | Finish]:
        """Return what is due. Only this opens and closes rounds."""
        time_s = self._time(now)
        if self._began_s is None:
            self._began_s = time_s
        if self._finished or self._closing:
            return []
        if self.open is not None:
            # A device that is gone may come back with its update, so that only the deadline gives it up.
            why = self._enough(self.open) or self._time_is_up(self.open, time_s)
            if not why:
                return []
            self._closing = True
            return [Close(self.open.number, why)]
        if self._connected_s is None:
            return []
        if self.done >= self.settings.last:
            return [Finish()]
        if time_s < self._connected_s + SETTLE_S or len(self.present) < self.settings.least_devices:
            return []
        number = self.done + 1
        # Its times are the clock's as it is now, however often it was set back before.
        self._connected_s -= self._behind_s
        self._began_s -= self._behind_s
        self._behind_s = 0.0
        self.open = Open(
            number,
            self._select(number),
            now,
            now + self.settings.seconds - self.settings.upload_seconds,
            now + self.settings.seconds,
            measure_only=number > self.settings.number,
        )
        return [self.open]

    def _time(self, now: float) -> float:
        """Return the time on a clock that is never set back while a round is open."""
        self._behind_s += max(0.0, self._last_s - now)
        self._last_s = now
        return now + self._behind_s

    def _enough(self, opened: Open) -> str:
        selected, answered = len(opened.selected), len(self.answered)
        if answered >= selected:
            return "all have answered"
        enough = self.settings.enough(selected)
        return f"{answered} of {selected} answered, at least {enough} needed" if answered >= enough else ""

    def _time_is_up(self, opened: Open, time_s: float) -> str:
        if time_s < opened.deadline_s:
            return ""
        if self._connected_s is not None:
            came_back = self._connected_s > opened.opened_s
            grace_s = max(self.settings.upload_seconds, RETURN_S) if came_back else 0.0
            if time_s >= self._connected_s + grace_s:
                back_s = time_s - self._connected_s
                return "its deadline has passed" + (f", and the broker is back for {back_s:.0f} s" if came_back else "")
        assert self._began_s is not None
        if time_s >= max(opened.deadline_s, self._began_s) + self.settings.seconds:
            return "the broker has been away for too long"
        return ""

    def _select(self, number: int) -> tuple[str, ...]:
        present = sorted(self.present)
        count = self.settings.to_select(len(present))
        if count >= len(present):
            return tuple(present)
        rng = np.random.default_rng((self.settings.seed, number))
        chosen = rng.choice(len(present), size=count, replace=False)
        return tuple(present[position] for position in sorted(chosen.tolist()))
