"""Federated Dropout (Caldas et al., 2018): each device gets a random sub-model of one size, fixed for the round.

The size is what the weakest device can train, and the same for all: a share of the filters of every group. Input and
classes are never dropped. The draw is the device's own, from a seed of device and round; the paper's server draws.

Decided here, as the paper does not say how weights that several devices hold are averaged: each element over the
devices that hold it, by their images. As for all strategies, the whole model is sent both ways; the paper's savings on
the line are not counted.
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
