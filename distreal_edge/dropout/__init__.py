"""Dropout vectors, draw policies, survivors, rows, tables, and what they take on one board.

This room knows groups by their sizes only; what a group *is* belongs to the network.
"""

from __future__ import annotations

from distreal_edge.dropout.draw import DRAW_POLICIES, Draws, check_policy, draw_subset
from distreal_edge.dropout.profile import (
    MAXIMUM_PROFILE_BYTES,
    PROFILE_SCHEMA_VERSION,
    Profile,
    ProfiledMachine,
    ProfiledRow,
    ProfiledStep,
    profile_path,
)
from distreal_edge.dropout.subset import Subset
from distreal_edge.dropout.table import MAXIMUM_ROWS, MAXIMUM_TABLE_BYTES, SCHEMA_VERSION, Row, Table
from distreal_edge.dropout.vectors import Vector, check_vector, counts_vector, filter_counts, uniform_vector

__all__ = [
    "DRAW_POLICIES",
    "MAXIMUM_PROFILE_BYTES",
    "MAXIMUM_ROWS",
    "MAXIMUM_TABLE_BYTES",
    "PROFILE_SCHEMA_VERSION",
    "SCHEMA_VERSION",
    "Draws",
    "Profile",
    "ProfiledMachine",
    "ProfiledRow",
    "ProfiledStep",
    "Row",
    "Subset",
    "Table",
    "Vector",
    "check_policy",
    "check_vector",
    "counts_vector",
    "draw_subset",
    "filter_counts",
    "profile_path",
    "uniform_vector",
]
