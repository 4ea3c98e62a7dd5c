"""The bound: full networks for all, on devices that have what these need (FedAvg, McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import widest_row
from distreal_edge.simulate.rivals.rival import Rival

__all__ = ["RIVAL"]

RIVAL = Rival(
    name="full-unlimited",
    title="full network, unlimited resources",
    table=tables.full_only,
    pace=widest_row,
    unlimited=True,
)
