"""One TOML file per role, checked before anything starts."""

from __future__ import annotations

from distreal_edge.config.device import DeviceConfig, DeviceData, Resources
from distreal_edge.config.federation import (
    CeilingStep,
    Evaluation,
    FederationConfig,
    NetworkChoice,
    Rounds,
    TableChoice,
    Training,
)
from distreal_edge.config.fields import Broker, Shard
from distreal_edge.config.load import find_role, load_config, named_by
from distreal_edge.config.network import build_network
from distreal_edge.config.table import build_table

__all__ = [
    "Broker",
    "CeilingStep",
    "DeviceConfig",
    "DeviceData",
    "Evaluation",
    "FederationConfig",
    "NetworkChoice",
    "Resources",
    "Rounds",
    "Shard",
    "TableChoice",
    "Training",
    "build_network",
    "build_table",
    "find_role",
    "load_config",
    "named_by",
]
