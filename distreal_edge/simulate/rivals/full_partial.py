"""Full networks for all, each for as many mini-batches as it manages: partial work (FedProx, Li et al., MLSys 2020).

Decided here: without FedProx's proximal term, which answers another question: how far devices may drift. A device
counts by the images that it trained, as in every plain average here; FedProx counts all that were selected alike.
"""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import widest_row
from distreal_edge.simulate.rivals.rival import Rival

__all__ = ["RIVAL"]

RIVAL = Rival(
    name="full-partial",
    title="full network, fewer mini-batches",
    table=tables.full_only,
    pace=widest_row,
)
