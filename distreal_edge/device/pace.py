"""Which row, and how many threads, before every mini-batch.

Pure: time, availability and what the last mini-batches took are handed in. `docs/device.md` has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from distreal_edge.device.board import Availability
    from distreal_edge.dropout import Table

__all__ = ["Choice", "Pace", "PaceMaker", "Pacing", "Pause", "RoundPlan", "Speed"]

_NEW_WEIGHT = 0.3
"""Share of the newest measurement in the averages: about the last five mini-batches count."""
_FRESH = 10
"""For so many mini-batches of other rows a row's own average counts in full."""
_REMEMBERED = 0.95
"""How much of its difference from the general average survives each one after that."""
_SUPPLY_S = 20.0
"""For so many seconds, about, back the cores that were really had are averaged."""
_THRIFT = 0.7
"""How much of an abundance is saved for leaner times: 0 spends it all at once. `benchmarks/pace.py` judges."""
_SAFETY = 1.1
"""What is left at the end of a round must be this much more than a mini-batch is predicted to take."""
_LEAST_CORES = 1e-3
_PAUSE_S = 0.25
"""How long to wait before looking again; no shorter than a monitor takes to see a change."""


class Speed:
    """Predict how long a row takes: what was measured on this board, corrected by what the last steps took.

    With a board's profile of the table each row starts from its own seconds at each number of threads. Else a few rows
    have been measured on one core, the others are taken to lie between them as their MACs do, and threads to share work
    without loss. Corrections are factors on that. A row that has been run is corrected by the average of its own
    mini-batches, the others by that of all of them. The longer a row has not been run, the less its own average counts:
    one mini-batch that was slow for a passing reason must not shut its row out for good.
    """

    def __init__(self, table: Table, measured: Mapping[int, float] | None = None) -> None:
        """Start from the seconds of one core that rows take for each image, or, without any, from the table's profile.

        Raises `ConfigError` when there is neither.
        """
        self._profile = table.profile if measured is None else None
        if self._profile is None and not measured:
            raise ConfigError("nobody has measured yet how fast this board is: there is neither a profile nor a row")
        macs = [row.macs for row in table.rows]
        self._per_image = _between(macs, measured or {})
        self._supply_cores: float | None = None
        self._general = 1.0
        self._own = [1.0] * len(table.rows)
        self._ran_at: list[int | None] = [None] * len(table.rows)
        self._ran = 0

    def thrift(self, cores: float) -> float:
        """Return by how much more than seconds tell a mini-batch on so many cores should be counted, at least 1.

        A mini-batch's worth rises less and less with its cost: it is better to give all of them a like number of
        core-seconds than a like number of seconds. So while more cores are free than were had on average, a part of
        them is saved: more mini-batches are trained instead of dearer ones. In scarcity nothing is saved.
        """
        if self._supply_cores is None or cores <= self._supply_cores:
            return 1.0
        return math.pow(cores / self._supply_cores, _THRIFT)

    def most_threads(self, cores: float) -> int:
        """Return how many threads so many cores can carry: each needs most of one, or it holds up the others."""
        return max(1, round(cores))

    def fastest(self, row: int, images: int, cores: float) -> tuple[int, float]:
        """Return the number of threads with which a mini-batch ends first, and after how many seconds.

        More threads than the cores carry are not tried, nor more than were profiled: they are not known to help.
        """
        most = self.most_threads(cores)
        tried = (most,) if self._profile is None else range(1, min(most, self._profile.threads[-1]) + 1)
        seconds, threads = min((self.predict(row, images, cores, threads), threads) for threads in tried)
        return threads, seconds

    def predict(self, row: int, images: int, cores: float, threads: int) -> float:
        """Return the seconds that a mini-batch of so many images takes with this row on so many cores."""
        usable = min(cores, float(threads))
        return self._core_seconds(row, images, threads) * self._factor(row) / usable if usable > 0.0 else math.inf

    def observe(self, row: int, images: int, threads: int, core_seconds: float, seconds: float) -> None:
        """Learn from a mini-batch that took so many seconds by the clock.

        `core_seconds` are those of one core, the threads' added up.
        """
        factor = core_seconds / self._core_seconds(row, images, threads)
        # What was measured before the first round may be far off: a first mini-batch counts in full.
        known = factor if self._ran_at[row] is None else self._factor(row)
        self._own[row] = known + _NEW_WEIGHT * (factor - known)
        self._general += (_NEW_WEIGHT if self._ran else 1.0) * (factor - self._general)
        self._ran += 1
        self._ran_at[row] = self._ran
        # Cores that come and go within a mini-batch show here: it took longer than those at its beginning promised.
        had = max(_LEAST_CORES, core_seconds / seconds) if seconds > 0.0 else 1.0
        known = had if self._supply_cores is None else self._supply_cores
        self._supply_cores = known - math.expm1(-seconds / _SUPPLY_S) * (had - known)

    def _core_seconds(self, row: int, images: int, threads: int) -> float:
        # As measured before the first mini-batch: the seconds on free cores, times their number.
        if self._profile is None:
            return self._per_image[row] * images
        return self._profile.seconds(row, threads, images) * threads

    def _factor(self, row: int) -> float:
        ran_at = self._ran_at[row]
        if ran_at is None:
            return self._general
        stale = max(0, self._ran - ran_at - _FRESH)
        return self._general + (self._own[row] - self._general) * _REMEMBERED**stale


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of the table, the threads to run it with, and the seconds it is expected to take."""

    row: int
    threads: int
    predicted_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing fits now, but something would if cores came back: look again after so many seconds."""

    seconds: float


class RoundPlan(TypedDict):
    """What is to be done in a round: the arguments of a `Pace` beside the table and the speed."""

    ceiling: float
    planned: int
    most: int
    images: int
    train_until_s: float
    peak_bytes: Sequence[int] | None


class Pacing(Protocol):
    """What chooses the rows of a round: a `Pace`, or another way for comparison."""

    def choose(self, now_s: float, availability: Availability) -> Choice | Pause | None:
        """Return what to run next, or None when the round's work is over."""

    def finished(self, choice: Choice, seconds: float, core_seconds: float) -> None:
        """Note that the chosen mini-batch was run, and what it took."""


class Pace:
    """Spread a round's mini-batches over its time, on the best rows that fit.

    `planned` mini-batches are to be trained until `train_until_s`. Each is given an equal share of the time that is
    left; of the rows under the ceiling that fit into that share and into memory the best is taken, and the cheapest
    when none does. Time left over is spent on more mini-batches, up to `most`, on the best row that still fits.
    `peak_bytes` are the rows' memory at `images` images; the table's own figures when it is not given.
    """

    def __init__(
        self,
        table: Table,
        speed: Speed,
        *,
        ceiling: float,
        planned: int,
        most: int,
        images: int,
        train_until_s: float,
        peak_bytes: Sequence[int] | None = None,
    ) -> None:
        """Plan a round of mini-batches of `images` images each."""
        allowed = table.under(ceiling)
        self._scores = [row.score for row in allowed]
        self._peak_bytes = [row.peak_bytes for row in allowed] if peak_bytes is None else peak_bytes
        self._speed = speed
        self._planned = planned
        self._most = max(planned, most)
        self._images = images
        self._train_until_s = train_until_s
        self._done = 0
        self._most_cores = 0.0

    def choose(self, now_s: float, availability: Availability) -> Choice | Pause | None:
        """Return what to run next, or None when the round's work is over or the cheapest row would come too late."""
        left_s = self._train_until_s - now_s
        if self._done >= self._most or left_s <= 0.0:
            return None
        cores = availability.cores
        usable = min(cores, float(self._speed.most_threads(cores)))
        self._most_cores = max(self._most_cores, usable)
        fastest = [self._speed.fastest(row, self._images, cores) for row in range(len(self._scores))]
        _, cheapest_s = fastest[0]
        if cheapest_s * _SAFETY > left_s:
            # Cores come and go: the round is over only when the most that were seen in it would not do.
            _, least_s = self._speed.fastest(0, self._images, self._most_cores)
            if self._done and least_s * _SAFETY > left_s:
                return None
            # The very first mini-batch is tried with whatever there is: an update that is late beats none at all.
            if self._done or cores <= 0.0:
                return Pause(min(_PAUSE_S, left_s))
        share_s = left_s / max(1, self._planned - self._done) / self._speed.thrift(usable)
        share_s = min(share_s, left_s / _SAFETY)
        fitting = [
            row
            for row, (_, seconds) in enumerate(fastest)
            if seconds <= share_s
            and (availability.memory_bytes is None or self._peak_bytes[row] <= availability.memory_bytes)
        ]
        row = max(fitting, key=self._scores.__getitem__, default=0)
        return Choice(row, *fastest[row])

    def finished(self, choice: Choice, seconds: float, core_seconds: float) -> None:
        """Note that the chosen mini-batch was run, and the seconds of the clock and of one core that it took."""
        self._done += 1
        self._speed.observe(choice.row, self._images, choice.threads, core_seconds, seconds)


PaceMaker = Callable[..., Pacing]
"""Makes what chooses rows, of a table, a speed and a `RoundPlan`."""


def _between(macs: Sequence[int], measured: Mapping[int, float]) -> list[float]:
    # Straight lines between the rows that were measured; beyond them seconds are proportional to MACs.
    known = sorted(measured)
    seconds = []
    for row, own in enumerate(macs):
        below = max((one for one in known if one <= row), default=None)
        above = min((one for one in known if one >= row), default=None)
        if below is None or above is None or below == above:
            nearest = below if above is None else above
            seconds.append(math.nan if nearest is None else measured[nearest] * own / macs[nearest])
        else:
            share = (own - macs[below]) / (macs[above] - macs[below])
            seconds.append((1.0 - share) * measured[below] + share * measured[above])
    return seconds
