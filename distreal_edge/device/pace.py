"""Which row, and how many threads, before every mini-batch.

Pure: time, availability and what the last mini-batches took are handed in. `docs/device.md` has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distreal_edge.device.board import Availability
    from distreal_edge.dropout import Table

__all__ = ["Choice", "Pace", "Pause", "Speed"]

_NEW_WEIGHT = 0.3
"""Share of the newest measurement in the averages: about the last five mini-batches count."""
_FRESH = 10
"""For so many mini-batches of other rows a row's own average counts in full."""
_REMEMBERED = 0.95
"""How much of its difference from the general average survives each one after that."""
_PAUSE_S = 0.25
"""How long to wait before looking again; no shorter than a monitor takes to see a change."""


class Speed:
    """Predict how long a row takes: a measured seconds-per-MAC, corrected by what the last steps took.

    A row that has been run is predicted by the average of its own mini-batches, the others by that of all of them. The
    longer a row has not been run, the less its own average counts: one mini-batch that was slow for a passing reason
    must not shut its row out for good. All times are seconds of one core of this board.
    """

    def __init__(self, table: Table, core_seconds_per_mac: float) -> None:
        """Start from a first measurement."""
        self._macs = tuple(row.macs for row in table.rows)
        self._general = core_seconds_per_mac
        self._own = [core_seconds_per_mac] * len(table.rows)
        self._ran_at: list[int | None] = [None] * len(table.rows)
        self._ran = 0

    def predict(self, row: int, images: int, cores: float) -> float:
        """Return the seconds that a mini-batch of so many images takes with this row on so many cores."""
        return self._macs[row] * images * self._per_mac(row) / cores if cores > 0.0 else math.inf

    def observe(self, row: int, images: int, core_seconds: float) -> None:
        """Learn from a mini-batch that took so many seconds of one core."""
        per_mac = core_seconds / (self._macs[row] * images)
        # What was measured before the first round may be far off: a first mini-batch counts in full.
        known = per_mac if self._ran_at[row] is None else self._per_mac(row)
        self._own[row] = known + _NEW_WEIGHT * (per_mac - known)
        self._general += (_NEW_WEIGHT if self._ran else 1.0) * (per_mac - self._general)
        self._ran += 1
        self._ran_at[row] = self._ran

    def _per_mac(self, row: int) -> float:
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
        threads = max(1, round(availability.cores))
        cores = min(availability.cores, float(threads))
        self._most_cores = max(self._most_cores, cores)
        predicted = [self._speed.predict(row, self._images, cores) for row in range(len(self._scores))]
        if predicted[0] > left_s:
            # Cores come and go: the round is over only when the most that were seen in it would not do.
            if self._done and self._speed.predict(0, self._images, self._most_cores) > left_s:
                return None
            # The very first mini-batch is tried with whatever there is: an update that is late beats none at all.
            if self._done or cores <= 0.0:
                return Pause(min(_PAUSE_S, left_s))
        share_s = left_s / max(1, self._planned - self._done)
        fitting = [
            row
            for row, seconds in enumerate(predicted)
            if seconds <= share_s
            and (availability.memory_bytes is None or self._peak_bytes[row] <= availability.memory_bytes)
        ]
        row = max(fitting, key=self._scores.__getitem__, default=0)
        return Choice(row, threads, predicted[row])

    def finished(self, choice: Choice, core_seconds: float) -> None:
        """Note that the chosen mini-batch was run, and the seconds of one core that it took."""
        self._done += 1
        self._speed.observe(choice.row, self._images, core_seconds)
