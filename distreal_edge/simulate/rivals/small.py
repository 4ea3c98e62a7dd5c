"""One small network for all, that the weakest device can train: as planned, or with the time that is left filled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.dropout import counts_vector
from distreal_edge.network import Network
from distreal_edge.search.families import fit_family
from distreal_edge.simulate.rivals import tables
from distreal_edge.simulate.rivals.pacing import widest_row
from distreal_edge.simulate.rivals.rival import MANY, Rival

if TYPE_CHECKING:
    from distreal_edge.simulate.world import World

__all__ = ["RIVAL_FILLED", "RIVAL_PLANNED"]


def small_network(world: World) -> Network:
    """Return the scenario's network with fewer filters in every layer, with fresh weights from the same seed.

    Of a network that comes from a file, and may be trained already, it is what its first filters make.
    """
    network, choice = world.network, world.scenario.network
    small = network.narrowed(counts_vector(fit_family(network, "uniform", world.small_share), network.plan.sizes))
    return small if choice.zoo is None else Network.initialise(small.plan, choice.seed)


RIVAL_PLANNED = Rival(
    name="small",
    title="small network for all",
    network=small_network,
    table=tables.full_only,
    pace=widest_row,
)
RIVAL_FILLED = Rival(
    name="small-filled",
    title="small network for all, time filled",
    network=small_network,
    table=tables.full_only,
    pace=widest_row,
    most_epochs=MANY,
)
