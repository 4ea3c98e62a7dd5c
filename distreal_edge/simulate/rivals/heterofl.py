"""HeteroFL (Diao, Ding and Tarokh, ICLR 2021): widths 1, 1/2 .. 1/16, always the first channels.

A device trains the widest one that it can afford when the round begins. Each element becomes the plain mean over the
devices that hold it. (Its masked loss for labels that a device lacks, and its scaler, are left out: batch norm makes up
for the latter.)
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
