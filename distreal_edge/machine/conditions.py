"""What changes slowly: heat, throttling, power."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distreal_edge.machine.heat import read_firmware_throttled, read_frequency_capped, read_temperature_c
from distreal_edge.machine.power import read_on_battery

if TYPE_CHECKING:
    from distreal_edge.machine.files import Roots

__all__ = ["Conditions", "read_conditions"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The hottest sensor (None: there is none), whether the frequency is held down, and whether a battery empties."""

    temperature_c: float | None = None
    throttled: bool = False
    on_battery: bool = False


def read_conditions(roots: Roots) -> Conditions:
    """Return what this machine's conditions are; what it does not tell is taken to be well."""
    return Conditions(
        read_temperature_c(roots),
        bool(read_firmware_throttled(roots) or read_frequency_capped(roots)),
        bool(read_on_battery(roots)),
    )
