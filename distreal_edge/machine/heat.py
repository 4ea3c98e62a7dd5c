"""How hot this machine is, and whether it is held back for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from distreal_edge.machine.files import names_in, read_text, read_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.machine.files import Roots

__all__ = [
    "read_firmware_flags",
    "read_firmware_throttled",
    "read_frequency_capped",
    "read_low_voltage",
    "read_temperature_c",
]

_COLDEST_C: Final = -40.0
_HOTTEST_C: Final = 150.0
"""Silicon is dead beyond these; sensors that are switched off or broken say such things."""
_PROCESSOR_SENSORS: Final = frozenset({"coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal"})
"""Drivers of sensors in processors. Others measure disks, radios and power supplies."""
_VOLTAGE_SENSOR: Final = "rpi_volt"
_THROTTLED: Final = ("devices", "platform", "soc", "soc:firmware", "get_throttled")
_THROTTLED_NOW: Final = 0xF
"""Bits of the Raspberry Pi's firmware: low voltage, capped, throttled, soft temperature limit; higher bits are past."""


def read_temperature_c(roots: Roots) -> float | None:
    """Return the hottest of the thermal zones and of the processor's own sensors, in degrees Celsius, or None."""
    return max(
        (degrees for degrees in _temperatures_c(roots) if _COLDEST_C <= degrees <= _HOTTEST_C),
        default=None,
    )


def read_firmware_flags(roots: Roots) -> int | None:
    """Return what a Raspberry Pi's firmware tells of throttling, as `vcgencmd get_throttled` does; None elsewhere."""
    text = read_text(roots.sys.joinpath(*_THROTTLED))
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None


def read_firmware_throttled(roots: Roots) -> bool | None:
    """Return whether a Raspberry Pi's firmware holds the frequency down right now; None where nobody says."""
    flags = read_firmware_flags(roots)
    return None if flags is None else flags & _THROTTLED_NOW != 0


def read_low_voltage(roots: Roots) -> bool | None:
    """Return whether a Raspberry Pi's supply is below its least voltage right now; None where nobody watches it."""
    sensors = roots.sys / "class" / "hwmon"
    alarms = [
        read_whole(sensors / chip / "in0_lcrit_alarm")
        for chip in names_in(sensors)
        if read_text(sensors / chip / "name") == _VOLTAGE_SENSOR
    ]
    known = [alarm != 0 for alarm in alarms if alarm is not None]
    return any(known) if known else None


def read_frequency_capped(roots: Roots) -> bool | None:
    """Return whether a CPU may not run as fast as it could, by heat or by somebody's wish; None where nobody says."""
    policies = roots.sys / "devices" / "system" / "cpu" / "cpufreq"
    capped = None
    for name in names_in(policies):
        allowed = read_whole(policies / name / "scaling_max_freq")
        possible = read_whole(policies / name / "cpuinfo_max_freq")
        if allowed is not None and possible is not None:
            capped = bool(capped) or allowed < possible
    return capped


def _temperatures_c(roots: Roots) -> Iterator[float]:
    thermal = roots.sys / "class" / "thermal"
    for zone in names_in(thermal):
        if zone.startswith("thermal_zone"):
            thousandths = read_whole(thermal / zone / "temp")
            if thousandths is not None:
                yield thousandths / 1000.0
    sensors = roots.sys / "class" / "hwmon"
    for chip in names_in(sensors):
        if read_text(sensors / chip / "name") in _PROCESSOR_SENSORS:
            for name in names_in(sensors / chip):
                if name.startswith("temp") and name.endswith("_input"):
                    thousandths = read_whole(sensors / chip / name)
                    if thousandths is not None:
                        yield thousandths / 1000.0
