"""Federated training of one convolutional network on small boards, as much of it as each board can spare.

The names below are the public face; `docs/` explains them.
"""

from __future__ import annotations

from distreal_edge import zoo
from distreal_edge.dropout import Row, Subset, Table
from distreal_edge.engine import Engine
from distreal_edge.errors import DistrealError
from distreal_edge.network import Cost, FilterGroup, Network, Plan, PlanBuilder, Preprocessing

__all__ = [
    "Cost",
    "DistrealError",
    "Engine",
    "FilterGroup",
    "Network",
    "Plan",
    "PlanBuilder",
    "Preprocessing",
    "Row",
    "Subset",
    "Table",
    "__version__",
    "zoo",
]

__version__ = "0.1.0"
