"""Judge whether this machine is hot, held back, or short of voltage, right now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from distreal_edge.doctor.finding import Finding
from distreal_edge.machine import (
    Roots,
    read_firmware_flags,
    read_frequency_capped,
    read_low_voltage,
    read_temperature_c,
)

__all__ = ["HeatReading", "judge_heat", "read_heat"]

_HOT_C: Final = 80.0
"""A Raspberry Pi lowers its clock from here on; other processors a little later."""
# Bits of the Raspberry Pi's firmware: now, and 16 bits higher, at some time before.
_LOW_VOLTAGE: Final = 0x1
_HELD_DOWN: Final = 0x2 | 0x4 | 0x8
_EARLIER: Final = 16


@dataclass(frozen=True, slots=True)
class HeatReading:
    """The hottest sensor, the firmware's flags, its alarm for low voltage, and whether the frequency is capped.

    None where nothing tells.
    """

    temperature_c: float | None = None
    flags: int | None = None
    low_voltage: bool | None = None
    capped: bool | None = None


def read_heat(roots: Roots) -> HeatReading:
    """Read what Linux says of heat and voltage."""
    return HeatReading(
        read_temperature_c(roots), read_firmware_flags(roots), read_low_voltage(roots), read_frequency_capped(roots)
    )


def judge_heat(reading: HeatReading) -> tuple[Finding, ...]:
    """Say how hot it is, and on a Raspberry Pi, whether its power supply suffices."""
    flags = reading.flags or 0
    shown = "no sensor tells a temperature" if reading.temperature_c is None else f"{reading.temperature_c:.0f} degrees"
    if flags & _HELD_DOWN or (reading.temperature_c or 0.0) >= _HOT_C:
        held = ", and the firmware holds the clock down" if flags & _HELD_DOWN else ""
        heat = Finding(
            "heat",
            f"{shown}{held}",
            "give it a heat sink or a fan and air around it, or set highest_temperature_c = 75 under [resources]",
        )
    else:
        earlier = "; the firmware held the clock down earlier" if flags >> _EARLIER & _HELD_DOWN else ""
        capped = "; the clock is kept below its highest frequency" if reading.capped else ""
        heat = Finding("heat", f"{shown}{earlier}{capped}")
    if reading.flags is None and reading.low_voltage is None:
        return (heat,)
    now = bool(flags & _LOW_VOLTAGE or reading.low_voltage)
    if not now and not flags >> _EARLIER & _LOW_VOLTAGE:
        return (heat, Finding("voltage", "no alarm"))
    return (
        heat,
        Finding(
            "voltage",
            "too low now" if now else "was too low earlier",
            "use the board's official power supply and a short cable, and power USB disks on their own: low voltage "
            "slows the board and damages cards",
        ),
    )
