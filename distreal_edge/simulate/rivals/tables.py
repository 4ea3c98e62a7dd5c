"""The rows that strategies choose from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.config import build_table
from distreal_edge.dropout import SCHEMA_VERSION, Row, Table, counts_vector
from distreal_edge.search import shipped_table, shipped_tables, uniform_table
from distreal_edge.search.families import fit_family

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distreal_edge.network import Network
    from distreal_edge.simulate.world import World

__all__ = ["full_only", "given_or_searched", "of_share", "of_widths", "searched", "uniform"]


def full_only(world: World, network: Network) -> Table:
    """Return a table with nothing but the full network in it."""
    return uniform_table(network, rows=1, batch=world.scenario.training.batch)


def of_widths(widths: Sequence[float], draw: str) -> Callable[[World, Network], Table]:
    """Return what makes a table with one row for each share of the filters that all groups keep, 1 among them."""

    def make(world: World, network: Network) -> Table:
        sizes = network.plan.sizes
        counts = [tuple(max(1, round(width * size)) for size in sizes) for width in sorted(widths)]
        return _table(world, network, list(dict.fromkeys(counts)), draw, "uniform widths")

    return make


def of_share(draw: str) -> Callable[[World, Network], Table]:
    """Return what makes a table of two rows: uniform rates that the weakest device can afford, and the full network."""

    def make(world: World, network: Network) -> Table:
        counts = dict.fromkeys((fit_family(network, "uniform", world.small_share), network.plan.sizes))
        return _table(world, network, list(counts), draw, "uniform")

    return make


def uniform(draw: str) -> Callable[[World, Network], Table]:
    """Return what makes a table of uniform rates."""
    return lambda world, network: uniform_table(network, draw=draw, batch=world.scenario.training.batch, rows=16)


def searched(draw: str) -> Callable[[World, Network], Table]:
    """Return what takes a searched table with this draw policy: the scenario's, or one of the package that fits.

    Where nobody has searched, rates are uniform and residual streams kept.
    """

    def make(world: World, network: Network) -> Table:
        given, batch = _given(world, network), world.scenario.training.batch
        if given is not None and given.draw == draw:
            return given
        sizes = network.plan.sizes
        fitting = (shipped_table(name) for name in shipped_tables())
        found = (table for table in fitting if table.network == network.structure and table.draw == draw)
        return next(found, None) or uniform_table(
            network, draw=draw, batch=batch, rows=16, keep_streams=len(network.plan.layout.streams) < len(sizes)
        )

    return make


def given_or_searched(draw: str) -> Callable[[World, Network], Table]:
    """Return what takes the scenario's table whatever its draw policy, or else a searched one with this policy."""
    return lambda world, network: _given(world, network) or searched(draw)(world, network)


def _given(world: World, network: Network) -> Table | None:
    choice = world.scenario.table
    return None if choice is None else build_table(choice, network, world.scenario.training.batch)


def _table(world: World, network: Network, rows: Sequence[tuple[int, ...]], draw: str, origin: str) -> Table:
    sizes, batch = network.plan.sizes, world.scenario.training.batch
    costs = [(counts, network.cost(counts_vector(counts, sizes), batch)) for counts in rows]
    full = max(cost.macs for _, cost in costs)
    made = tuple(
        Row(counts_vector(counts, sizes), cost.macs, cost.peak_bytes, cost.macs / full)
        for counts, cost in sorted(costs, key=lambda one: one[1].macs)
    )
    return Table(SCHEMA_VERSION, network.structure, sizes, draw, world.scenario.data.name, origin, batch, made)
