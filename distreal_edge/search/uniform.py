"""Tables without a search: the same rate for every filter group, or for the groups inside the blocks only."""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import TYPE_CHECKING

from distreal_edge.dropout import MAXIMUM_ROWS, SCHEMA_VERSION, Row, Table, check_policy
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from distreal_edge.dropout import Vector
    from distreal_edge.network import Cost, Network

__all__ = ["uniform_table"]

_STEPS = 1000
"""Rates are whole thousandths, so that people can read them."""


def uniform_table(
    network: Network,
    *,
    draw: str = "ordered",
    data: str = "any",
    batch: int = 32,
    rows: int = 8,
    keep_streams: bool = False,
    cheapest: float = 0.05,
) -> Table:
    """Fill a table with rows of one rate each, whose MACs rise by the same factor from row to row.

    The cheapest row has at most the share `cheapest` of the full network's MACs, or as little as this network can; the
    last one is the full network. Each row between is the widest that stays within its share. Rows that keep the same
    filters as another are left out, so that a small network may get fewer than `rows`. With `keep_streams` the groups
    that additions tie keep rate 0, and only the groups inside the blocks are thinned, down to one filter; a network
    without additions has no streams, and all its groups are thinned.

    Nothing was trained to find these rows: the score is a row's share of the full MACs, on the assumption that wider
    learns faster. MACs are those of the ordered draw, as `Network.cost` counts a vector. Raises `ConfigError` for
    settings out of range, and when there is no group to thin.
    """
    check_policy(draw)
    if not 1 <= rows <= MAXIMUM_ROWS:
        message = f"a table has 1 to {MAXIMUM_ROWS} rows, not {rows}"
        raise ConfigError(message)
    if not 0.0 < cheapest <= 1.0:
        message = f"the cheapest row's share of the MACs must be in (0, 1], not {cheapest}"
        raise ConfigError(message)
    sizes = network.plan.sizes
    kept = network.plan.layout.streams if keep_streams else frozenset()
    if rows > 1 and not sizes:
        message = "this network has no filters that can be dropped; a table for it has one row"
        raise ConfigError(message)
    if rows > 1 and len(kept) == len(sizes):
        message = "every filter group of this network is in a residual stream; fill the table without keep_streams"
        raise ConfigError(message)

    def vector(step: int) -> Vector:
        return tuple(0.0 if group in kept else step / _STEPS for group in range(len(sizes)))

    @cache
    def cost(step: int) -> Cost:
        return network.cost(vector(step), batch)

    full = cost(0).macs
    least = max(cheapest * full, cost(_STEPS - 1).macs)
    targets = [least * (full / least) ** (row / (rows - 1)) for row in range(rows - 1)]
    # The smallest rate within each target: two rates that keep the same filters never both come out.
    steps = {bisect_left(range(_STEPS), -target, key=lambda step: -cost(step).macs) for target in targets} | {0}
    found = [
        Row(vector(step), cost(step).macs, cost(step).peak_bytes, cost(step).macs / full)
        for step in sorted(steps, reverse=True)
    ]
    origin = "uniform, streams kept" if kept else "uniform"
    return Table(SCHEMA_VERSION, network.structure, sizes, draw, data, origin, batch, tuple(found))
