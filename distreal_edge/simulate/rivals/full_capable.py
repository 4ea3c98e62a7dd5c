"""Full networks by the devices that can train them when a round opens; the others are never asked."""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import widest_row
from distreal_edge.simulate.rivals.rival import Rival

__all__ = ["RIVAL"]

_ENOUGH = 1.0 - 1e-9

RIVAL = Rival(
    name="full-capable",
    title="full network, capable devices only",
    table=tables.full_only,
    pace=widest_row,
    takes_part=lambda share: share >= _ENOUGH,
    whole_only=True,
)
