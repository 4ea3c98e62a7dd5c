"""Filling tables with dropout vectors: for now at uniform rates, which need no search."""

from __future__ import annotations

from distreal_edge.search.uniform import uniform_table

__all__ = ["uniform_table"]
