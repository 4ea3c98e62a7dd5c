"""Say before anything is started what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from distreal_edge.data import load_dataset
from distreal_edge.engine import Engine
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from distreal_edge.demo.scenario import Scenario

__all__ = ["check_needs"]


def check_needs(scenario: Scenario) -> None:
    """Raise ConfigError for a missing package and DataError for missing images, each with what to install.

    That a broker is missing, the broker says itself.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the demo needs matplotlib for the pictures at the end: pip install 'distreal-edge[plots]'")
    # An instruction set that the environment names and that does not run here is said now, not by every board.
    Engine(scenario.network)
    root = None if scenario.root is None else Path(scenario.root)
    load_dataset(scenario.data, root=root, split="test")
