"""Where the power comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distreal_edge.machine.files import is_folder, names_in, read_text

if TYPE_CHECKING:
    from distreal_edge.machine.files import Roots

__all__ = ["read_on_battery"]


def read_on_battery(roots: Roots) -> bool | None:
    """Return whether this machine lives on its battery right now; None where Linux knows no power supplies at all.

    It does when a battery (or a UPS) empties and nothing else gives power. A machine without batteries never does, nor
    do those of mice and keyboards count.
    """
    supplies = roots.sys / "class" / "power_supply"
    if not is_folder(supplies):
        return None
    empties = False
    for name in names_in(supplies):
        supply = supplies / name
        if read_text(supply / "scope") == "Device":
            continue
        if read_text(supply / "type") in {"Battery", "UPS"}:
            empties |= read_text(supply / "status") == "Discharging"
        elif (read_text(supply / "online") or "0") != "0":
            return False
    return empties
