"""`python -m distreal_edge` is `distreal-edge`."""

from __future__ import annotations

from distreal_edge.cli import main

main()
