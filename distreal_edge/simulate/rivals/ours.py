"""What this project does: nested draws, searched rates, rows refitted every mini-batch, and a schedule of widths.

`ours-adaptive` raises its ceiling as soon as narrow rows have stopped making progress, instead of after a fixed share
of the rounds, which for it is the latest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from distreal_edge.aggregator import ceiling_by_progress
from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.rival import MANY, Rival

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distreal_edge.simulate.rivals.rival import Ceilings
    from distreal_edge.simulate.world import World

__all__ = ["RIVAL", "RIVAL_ADAPTIVE"]

_WINDOW: Final = 5
"""Rounds whose losses are taken together: each has other devices with other images."""
_LEAST_FALL: Final = 0.02
_LATEST: Final = 0.75
"""Of the rounds: so late the last ceiling holds in any case, or the full network would not be trained at all."""


def _ceilings(world: World) -> Ceilings:
    steps = world.scenario.ceiling
    if steps is None:
        return ((0.0, 0.3), (0.5, 1.0))
    return tuple((step.from_share, step.ceiling) for step in steps)


def _latest_ceilings(world: World) -> Ceilings:
    steps = _ceilings(world)
    last = max(_LATEST, steps[-1][0])
    return (steps[0], (last, steps[-1][1])) if len(steps) > 1 else steps


def _ceiling_after(world: World, losses: Sequence[float | None]) -> float:
    ceilings = [ceiling for _, ceiling in _ceilings(world)]
    return ceiling_by_progress(ceilings, losses, window=_WINDOW, least_fall=_LEAST_FALL)


RIVAL = Rival(
    name="ours",
    title="distreal-edge",
    table=tables.given_or_searched("ordered"),
    average="touch",
    ceilings=_ceilings,
    most_epochs=MANY,
)
RIVAL_ADAPTIVE = Rival(
    name="ours-adaptive",
    title="distreal-edge, ceiling by progress",
    table=tables.given_or_searched("ordered"),
    average="touch",
    ceilings=_latest_ceilings,
    ceiling_after=_ceiling_after,
    most_epochs=MANY,
)
