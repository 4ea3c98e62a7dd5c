"""When a round opens and closes: a state machine without sockets, clocks, files or threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AggregatorRounds", "Close", "Finish", "Open", "RoundSettings"]

SETTLE_S: Final = 1.0
"""After the broker is back, devices that are there have so long to be seen before a round opens without them."""
RETURN_S: Final = 12.0
"""When broker or aggregator come back during a round, devices have at least so long to bring their updates: more than
the ten seconds after which they send again what was not answered."""
MOST_DEVICES: Final = 10_000
"""As many as a manifest can name."""


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """How many rounds, how long and with whom; see `config.Rounds`. All times are seconds.

    `closing_measurement` adds a round at the end in which devices only measure batch-norm statistics.
    """

    number: int
    seconds: float
    upload_seconds: float
    least_devices: int
    devices_per_round: int | None
    seed: int
    closing_measurement: bool = False

    def __post_init__(self) -> None:
        """Check that the settings fit together."""
        if self.upload_seconds >= self.seconds:
            raise ConfigError(
                f"rounds.upload_seconds ({self.upload_seconds}) must be less than rounds.seconds ({self.seconds})"
            )
        if self.devices_per_round is not None and self.devices_per_round < 1:
            raise ConfigError("rounds.devices_per_round must be at least 1")

    @property
    def last(self) -> int:
        """The number of the last round."""
        return self.number + self.closing_measurement


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
    """Average what has come, store and evaluate; then call `closed`."""

    number: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Tell everybody that the training is over, then call `finished`; said again until then."""


class AggregatorRounds:
    """The rounds of one federation.

    `done` rounds are closed already; `reopened` is the round that was open when the aggregator stopped, with the
    devices that had answered. `present` holds the devices that are there, each with how many images it has.

    Nothing opens while the broker is out of reach. A round whose deadline passes then, or shortly after, stays open
    until devices have had time to upload since it was back, though never for longer than another round.
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
        self._closing = False
        self._finished = False

    @property
    def connected(self) -> bool:
        """Whether the broker is within reach."""
        return self._connected_s is not None

    def broker_back(self, now: float) -> None:
        """Note that there is a connection to the broker; who is there will be told anew."""
        self._connected_s = now

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

    def finished(self) -> None:
        """Note that everybody was told what `Finish` asks for."""
        self._finished = True

    def tick(self, now: float) -> list[Open | Close | Finish]:
        """Return what is due. Only this opens and closes rounds."""
        if self._began_s is None:
            self._began_s = now
        if self._finished or self._closing:
            return []
        if self.open is not None:
            # A device that is gone may come back with its update, so that only the deadline gives it up.
            if not self.answered.issuperset(self.open.selected) and not self._time_is_up(self.open, now):
                return []
            self._closing = True
            return [Close(self.open.number)]
        if self._connected_s is None:
            return []
        if self.done >= self.settings.last:
            return [Finish()]
        if now < self._connected_s + SETTLE_S or len(self.present) < self.settings.least_devices:
            return []
        number = self.done + 1
        self.open = Open(
            number,
            self._select(number),
            now,
            now + self.settings.seconds - self.settings.upload_seconds,
            now + self.settings.seconds,
            measure_only=number > self.settings.number,
        )
        return [self.open]

    def _time_is_up(self, opened: Open, now: float) -> bool:
        if now < opened.deadline_s:
            return False
        if self._connected_s is not None:
            came_back = self._connected_s > opened.opened_s
            grace_s = max(self.settings.upload_seconds, RETURN_S) if came_back else 0.0
            if now >= self._connected_s + grace_s:
                return True
        assert self._began_s is not None
        return now >= max(opened.deadline_s, self._began_s) + self.settings.seconds

    def _select(self, number: int) -> tuple[str, ...]:
        present = sorted(self.present)
        count = self.settings.devices_per_round
        if count is None or count >= len(present):
            return tuple(present)
        rng = np.random.default_rng((self.settings.seed, number))
        chosen = rng.choice(len(present), size=count, replace=False)
        return tuple(present[position] for position in sorted(chosen.tolist()))
