"""DISTREAL (Rapp, Khalili, Pfeiffer and Henkel, AAAI 2022), and what is left of it without its parts.

As published: random draws, searched per-layer rates, a row for every mini-batch, a plain average. `uniform-dropout` has
the same rate in all layers; `distreal-per-round` chooses its row when the round begins and keeps to it.
"""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import one_row_per_round
from distreal_edge.simulate.rivals.rival import Rival

__all__ = ["RIVAL", "RIVAL_PER_ROUND", "RIVAL_UNIFORM"]

RIVAL = Rival(
    name="distreal",
    title="DISTREAL as published",
    table=tables.searched("random"),
)
RIVAL_PER_ROUND = Rival(
    name="distreal-per-round",
    title="DISTREAL, one row a round",
    table=tables.searched("random"),
    pace=one_row_per_round,
)
RIVAL_UNIFORM = Rival(
    name="uniform-dropout",
    title="filter dropout, uniform rates",
    table=tables.uniform("random"),
)
