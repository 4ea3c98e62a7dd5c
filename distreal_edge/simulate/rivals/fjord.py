"""FjORD (Horvath et al., NeurIPS 2021): ordered dropout, a width drawn for every step up to what the device can afford.

Ten widths, evenly spaced, as in its paper; without self-distillation, which it shows to be optional.
"""

from __future__ import annotations

from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import width_drawn_per_step
from distreal_edge.simulate.rivals.rival import Rival

__all__ = ["RIVAL"]

RIVAL = Rival(
    name="fjord",
    title="FjORD",
    table=tables.of_widths(tuple(width / 10 for width in range(1, 11)), "ordered"),
    pace=width_drawn_per_step,
    average="touch",
)
