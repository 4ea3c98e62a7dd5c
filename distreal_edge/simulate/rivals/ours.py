"""What this project does: nested draws, searched rates, rows refitted every mini-batch, and a schedule of widths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.rival import MANY, Rival

if TYPE_CHECKING:
    from distreal_edge.simulate.world import World

__all__ = ["RIVAL"]


def _ceilings(world: World) -> tuple[tuple[float, float], ...]:
    steps = world.scenario.ceiling
    if steps is None:
        return ((0.0, 0.3), (0.5, 1.0))
    return tuple((step.from_share, step.ceiling) for step in steps)


RIVAL = Rival(
    name="ours",
    title="distreal-edge",
    table=tables.given_or_searched("ordered"),
    average="touch",
    ceilings=_ceilings,
    most_epochs=MANY,
)
