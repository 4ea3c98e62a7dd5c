"""Other ways than `device.Pace` to choose the rows of a round, for strategies that choose otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from distreal_edge.device.pace import Choice, Pace, PaceMaker, Pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from distreal_edge.device import Availability, Speed
    from distreal_edge.dropout import Table

__all__ = ["PaceOf", "as_it_fits", "one_row_per_round", "widest_row", "width_drawn_per_step"]

PaceOf = Callable[["np.random.Generator"], PaceMaker]
_PAUSE_S = 0.25


class _Planned:
    """The planned mini-batches of a round, one after the other, until it is over; `row` says which.

    As in `device.Pace`, the cheapest row is trained whatever memory there is.
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
        allowed = table.under(ceiling)
        self.rows = len(allowed)
        self.peak_bytes = [row.peak_bytes for row in allowed] if peak_bytes is None else peak_bytes
        self.speed = speed
        self.planned = planned
        self.images = images
        self.train_until_s = train_until_s
        self._most = max(planned, most)
        self._done = 0

    def row(self, now_s: float, availability: Availability) -> int:
        raise NotImplementedError

    def choose(self, now_s: float, availability: Availability) -> Choice | Pause | None:
        """Return what to run next; wait for cores while there are none."""
        left_s = self.train_until_s - now_s
        if self._done >= self._most or left_s <= 0.0:
            return None
        cores = availability.cores
        if cores <= 0.0:
            return Pause(min(_PAUSE_S, left_s))
        row = self.row(now_s, availability)
        return Choice(row, *self.speed.fastest(row, self.images, cores))

    def finished(self, choice: Choice, seconds: float, core_seconds: float) -> None:
        """Note that a mini-batch was run."""
        self._done += 1
        self.speed.observe(choice.row, self.images, choice.threads, core_seconds, seconds)

    def widest_that_fits(self, now_s: float, availability: Availability) -> int:
        """Return the widest row whose planned mini-batches all fit, if all stays as it is; else the first."""
        share_s = (self.train_until_s - now_s) / self.planned
        cores, memory_bytes = availability.cores, availability.memory_bytes
        fitting = (
            row
            for row in range(self.rows)
            if self.speed.fastest(row, self.images, cores)[1] <= share_s
            and (memory_bytes is None or self.peak_bytes[row] <= memory_bytes)
        )
        return max(fitting, default=0)


class _WidestRow(_Planned):
    def row(self, now_s: float, availability: Availability) -> int:  # noqa: ARG002
        """Return the widest row."""
        return self.rows - 1


class _OneRowPerRound(_Planned):
    _chosen: int | None = None

    def row(self, now_s: float, availability: Availability) -> int:
        """Return the row that fitted when the round began."""
        if self._chosen is None:
            self._chosen = self.widest_that_fits(now_s, availability)
        return self._chosen


def as_it_fits(_rng: np.random.Generator) -> PaceMaker:
    """Choose as devices do, before every mini-batch."""
    return Pace


def widest_row(_rng: np.random.Generator) -> PaceMaker:
    """Train the widest row under the ceiling, as often as planned or as time allows."""
    return _WidestRow


def one_row_per_round(_rng: np.random.Generator) -> PaceMaker:
    """Choose the widest row that fits when the round begins, and keep to it."""
    return _OneRowPerRound


def width_drawn_per_step(rng: np.random.Generator) -> PaceMaker:
    """Choose the widest row that fits when the round begins; for every mini-batch draw one up to that, uniformly."""

    class WidthDrawnPerStep(_OneRowPerRound):
        def row(self, now_s: float, availability: Availability) -> int:
            return int(rng.integers(0, super().row(now_s, availability) + 1))

    return WidthDrawnPerStep
