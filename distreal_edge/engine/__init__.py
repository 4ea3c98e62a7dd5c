"""The engine: one training step over a subset of the filters, and passes over the full network.

`docs/engine.md` writes the step down as formulas, down to the order of random draws, so that every backend does the
same.
"""

from __future__ import annotations

from distreal_edge._native import Cancellation
from distreal_edge.engine.engine import BACKENDS, Engine
from distreal_edge.engine.loss import mean_cross_entropy

__all__ = ["BACKENDS", "Cancellation", "Engine", "mean_cross_entropy"]
