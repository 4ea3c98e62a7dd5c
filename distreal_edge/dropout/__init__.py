"""Dropout vectors, draw policies, survivors, rows and tables.

This room knows groups by their sizes only; what a group *is* belongs to the network.
"""

from __future__ import annotations

from distreal_edge.dropout.draw import DRAW_POLICIES, Draws, check_policy, draw_subset
from distreal_edge.dropout.subset import Subset
from distreal_edge.dropout.table import MAXIMUM_ROWS, MAXIMUM_TABLE_BYTES, SCHEMA_VERSION, Row, Table
from distreal_edge.dropout.vectors import Vector, check_vector, filter_counts, uniform_vector

__all__ = [
    "DRAW_POLICIES",
    "MAXIMUM_ROWS",
    "MAXIMUM_TABLE_BYTES",
    "SCHEMA_VERSION",
    "Draws",
    "Row",
    "Subset",
    "Table",
    "Vector",
    "check_policy",
    "check_vector",
    "draw_subset",
    "filter_counts",
    "uniform_vector",
]
