"""The strategies that `simulate` compares, one file each behind one interface."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from distreal_edge.simulate.rivals import (
    distreal,
    federated_dropout,
    fjord,
    full_capable,
    full_late_dropped,
    full_partial,
    full_unlimited,
    heterofl,
    ours,
    small,
)
from distreal_edge.simulate.rivals.rival import Rival

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RIVALS", "Rival"]

RIVALS: Mapping[str, Rival] = MappingProxyType(
    {
        rival.name: rival
        for rival in (
            ours.RIVAL,
            ours.RIVAL_ADAPTIVE,
            full_unlimited.RIVAL,
            full_late_dropped.RIVAL,
            full_capable.RIVAL,
            full_partial.RIVAL,
            small.RIVAL_PLANNED,
            small.RIVAL_FILLED,
            federated_dropout.RIVAL,
            heterofl.RIVAL,
            fjord.RIVAL,
            distreal.RIVAL_UNIFORM,
            distreal.RIVAL,
            distreal.RIVAL_PER_ROUND,
        )
    }
)
"""By name, ours first."""
