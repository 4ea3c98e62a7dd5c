"""What a strategy decides: what devices train, which of them, and how their updates are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.simulate.rivals.pacing import as_it_fits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distreal_edge.aggregator import AverageKind
    from distreal_edge.dropout import Table
    from distreal_edge.network import Network
    from distreal_edge.simulate.rivals.pacing import PaceOf
    from distreal_edge.simulate.world import World

__all__ = ["MANY", "Ceilings", "Rival", "weakest_ceiling"]

Ceilings = tuple[tuple[float, float], ...]
MANY: Final = 1000.0
"""So many times the planned epochs are never reached: time ends a round."""


def weakest_ceiling(world: World) -> Ceilings:
    """Return a ceiling that lets nothing through but what the weakest device can afford."""
    return ((0.0, world.small_share),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One way to train under scarce resources. Everything else is the same for all of them.

    `table` holds the rows that devices choose from, and the draw policy. `pace` makes what chooses among them, from a
    generator of its own for each device and round. `network` makes the network that is trained of the scenario's.
    """

    name: str
    title: str
    table: Callable[[World, Network], Table]
    pace: PaceOf = as_it_fits
    network: Callable[[World], Network] = lambda world: world.network
    average: AverageKind = "fedavg"
    hostile_share: float = 0.2
    ceilings: Callable[[World], Ceilings] = lambda _world: ((0.0, 1.0),)
    ceiling_after: Callable[[World, Sequence[float | None]], float] | None = None
    """Returns a ceiling from the mean training losses of the rounds so far; the higher one of the two holds."""
    most_epochs: float = 1.0
    """As a multiple of the epochs that are planned: 1 stops when the plan is done, more fills the time that is left."""
    takes_part: Callable[[float], bool] = lambda _share: True
    """Whether a device can be selected that has this share of what the full network needs when a round opens."""
    whole_only: bool = False
    """Whether an update of fewer mini-batches than planned comes too late to count."""
    unlimited: bool = False
    """Whether devices have what the full network needs, whatever the scenario says."""
