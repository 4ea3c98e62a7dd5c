"""FedAvg as it is run most: full networks for all, and whoever is not done by the deadline is left out."""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import widest_row
from distreal_edge.simulate.rivals.rival import Rival

__all__ = ["RIVAL"]

RIVAL = Rival(
    name="full-late-dropped",
    title="full network, late devices dropped",
    table=tables.full_only,
    pace=widest_row,
    whole_only=True,
)
