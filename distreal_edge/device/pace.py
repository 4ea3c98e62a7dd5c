"""Which row, and how many threads, before every mini-batch.

Pure: time, availability and what the last mini-batches took are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distreal_edge.device.board import Availability
    from distreal_edge.dropout import Table

__all__ = ["Choice", "Pace", "Speed"]

_NEW_WEIGHT = 0.3
"""Share of the newest measurement in the averages: about the last five mini-batches count."""


class Speed:
    """Predict how long a row takes: a measured seconds-per-MAC, corrected by what the last steps took.

    A row that has been run is predicted by its own average; the others by seconds-per-MAC times the average error
    of the prediction so far. All times are seconds of one core of this board.
    """

    def __init__(self, table: Table, core_seconds_per_mac: float) -> None:
        """Start from a first measurement."""
        self._macs = tuple(row.macs for row in table.rows)
        self._per_mac = core_seconds_per_mac
        self._error = 1.0
        self._measured: dict[int, float] = {}

    def predict(self, row: int, images: int, cores: float) -> float:
        """Return the seconds that a mini-batch of so many images takes with this row on so many cores."""
        per_mac = self._measured.get(row, self._per_mac * self._error)
        return self._macs[row] * images * per_mac / max(cores, 1e-6)

    def observe(self, row: int, images: int, core_seconds: float) -> None:
        """Learn from a mini-batch that took so many seconds of one core."""
        per_mac = core_seconds / (self._macs[row] * images)
        known = self._measured.get(row)
        self._measured[row] = per_mac if known is None else known + _NEW_WEIGHT * (per_mac - known)
        self._error += _NEW_WEIGHT * (per_mac / self._per_mac - self._error)


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of the table, the threads to run it with, and the seconds it is expected to take."""

    row: int
    threads: int
    predicted_s: float


class Pace:
    """Spread a round's mini-batches over its time, on the best rows that fit.

    `planned` mini-batches are to be trained until `train_until_s`. Each is given an equal share of the time that is
    left; of the rows under the ceiling that fit into that share and into memory the best is taken, and the cheapest
    when none does. Time left over is spent on more mini-batches, up to `most`, on the best row that still fits.
    """

    def __init__(
        self, table: Table, speed: Speed, *, ceiling: float, planned: int, most: int, images: int, train_until_s: float
    ) -> None:
        """Plan a round of mini-batches of `images` images each."""
        self._table = table
        self._speed = speed
        self._rows = range(len(table.under(ceiling)))
        self._planned = planned
        self._most = max(planned, most)
        self._images = images
        self._train_until_s = train_until_s
        self._done = 0

    def choose(self, now_s: float, availability: Availability) -> Choice | None:
        """Return what to run next, or None when the round's work is over or the cheapest row would come too late."""
        left_s = self._train_until_s - now_s
        if self._done >= self._most or left_s <= 0.0:
            return None
        share_s = left_s / max(1, self._planned - self._done)
        predicted = [self._speed.predict(row, self._images, availability.cores) for row in self._rows]
        # The very first mini-batch is always tried: an update of a board that is late beats none at all.
        if predicted[0] > left_s and self._done:
            return None
        memory = availability.memory_bytes
        fitting = [
            row
            for row in self._rows
            if predicted[row] <= share_s and (memory is None or self._table.rows[row].peak_bytes <= memory)
        ]
        row = max(fitting, key=lambda candidate: self._table.rows[candidate].score, default=0)
        return Choice(row, max(1, round(availability.cores)), predicted[row])

    def finished(self, choice: Choice, core_seconds: float) -> None:
        """Note that the chosen mini-batch was run, and the seconds of one core that it took."""
        self._done += 1
        self._speed.observe(choice.row, self._images, core_seconds)
