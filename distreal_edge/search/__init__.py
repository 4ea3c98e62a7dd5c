"""The design space exploration: Pareto-optimal dropout vectors in cost and convergence speed, and tables of them.

Tables at uniform rates and those inside the package need no search and no Optuna; what searches is imported from its
own modules.
"""

from __future__ import annotations

from distreal_edge.search.shipped import shipped_table, shipped_tables
from distreal_edge.search.uniform import uniform_table

__all__ = ["shipped_table", "shipped_tables", "uniform_table"]
