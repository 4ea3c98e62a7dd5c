"""The design space exploration: Pareto-optimal dropout vectors in cost and convergence speed, and tables of them.

Tables at uniform rates need no search and no Optuna; what searches is imported from its own modules.
"""

from __future__ import annotations

from distreal_edge.search.uniform import uniform_table

__all__ = ["uniform_table"]
