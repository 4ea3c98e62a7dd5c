"""A virtual clock around the very same device and aggregator code, and rivals side by side.

What the verb `simulate` does is in `run.py`; a scenario is one TOML file, a strategy one file in `rivals/`.
"""

from __future__ import annotations

from distreal_edge.simulate.asynchronous import AsynchronousFederation, federation_of
from distreal_edge.simulate.federation import Federation
from distreal_edge.simulate.rivals import RIVALS, Rival
from distreal_edge.simulate.scenario import Scenario
from distreal_edge.simulate.world import World, world_of

__all__ = [
    "RIVALS",
    "AsynchronousFederation",
    "Federation",
    "Rival",
    "Scenario",
    "World",
    "federation_of",
    "world_of",
]
