"""Federated Dropout (Caldas et al., 2018): each device gets a random sub-model of one size, fixed for the round.

The size is what the weakest device can train. Its paper does not say how weights that several devices hold are
averaged; here each element over the devices that hold it, by their images.
"""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import widest_row
from distreal_edge.simulate.rivals.rival import Rival, weakest_ceiling

__all__ = ["RIVAL"]

RIVAL = Rival(
    name="federated-dropout",
    title="Federated Dropout",
    table=tables.of_share("sticky"),
    pace=widest_row,
    ceilings=weakest_ceiling,
    average="touch",
)
