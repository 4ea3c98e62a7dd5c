"""FjORD (Horvath et al., NeurIPS 2021): ordered dropout, a width drawn for every step up to what the device can afford.

Five widths, evenly spaced, as in its main experiments. What a device can afford is found when the round begins; each
mini-batch then draws one of the widths up to that, all alike. An element becomes the mean over the devices that train
it, weighted by their images.

Decided here: it is without self-distillation, which the paper reports apart. A device whose limit holds an element that
none of its mini-batches drew has no vote on it, where the paper would let it vote for no change. All five widths share
one set of batch-norm parameters, and scores are those of the full width with statistics of its own.
"""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import width_drawn_per_step
from distreal_edge.simulate.rivals.rival import Rival

__all__ = ["RIVAL"]

RIVAL = Rival(
    name="fjord",
    title="FjORD",
    table=tables.of_widths((0.2, 0.4, 0.6, 0.8, 1.0), "ordered"),
    pace=width_drawn_per_step,
    average="holders",
)
