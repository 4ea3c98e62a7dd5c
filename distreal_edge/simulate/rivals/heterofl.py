"""HeteroFL (Diao, Ding and Tarokh, ICLR 2021): widths 1, 1/2 .. 1/16, always the first channels.

A device trains the widest one that it can afford when the round begins: the paper's levels by capability, given out
anew every round. Each element becomes the plain mean over the devices that hold it, however many images they have.

Decided here: its masked loss for labels that a device lacks is left out, because no other strategy has it. Its scaler
cancels before batch norm; a network without batch norm rescales what it reads by the same factor. Statistics of batch
norm are measured after training, as in the paper. A device that falls behind sends what it has; the paper knows no
deadlines.
"""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import one_row_per_round
from distreal_edge.simulate.rivals.rival import Rival

__all__ = ["RIVAL"]

RIVAL = Rival(
    name="heterofl",
    title="HeteroFL",
    table=tables.of_widths((1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16), "ordered"),
    pace=one_row_per_round,
    # A trimmed mean that trims nobody: one vote for each device that trained an element.
    average="trimmed_mean",
    hostile_share=0.0,
)
