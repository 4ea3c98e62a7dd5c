"""A network as data: plan, filter groups, cost, file format.

`tracing` and `reference` import PyTorch, and are reached only by who asks for them.
"""

from __future__ import annotations

from distreal_edge.network.builder import PlanBuilder
from distreal_edge.network.cost import Cost
from distreal_edge.network.layout import NEVER_DROPPED, FilterGroup, Layout, is_depthwise
from distreal_edge.network.network import Network
from distreal_edge.network.parameters import Parameter
from distreal_edge.network.plan import Plan
from distreal_edge.network.preprocessing import Preprocessing, augment, normalise

__all__ = [
    "NEVER_DROPPED",
    "Cost",
    "FilterGroup",
    "Layout",
    "Network",
    "Parameter",
    "Plan",
    "PlanBuilder",
    "Preprocessing",
    "augment",
    "is_depthwise",
    "normalise",
]
