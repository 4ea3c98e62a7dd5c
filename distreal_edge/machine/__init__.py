"""What Linux says about this machine.

Every source is optional: what the kernel does not tell is None, and nothing raises.
"""

from __future__ import annotations

from distreal_edge.machine.files import Roots, read_text
from distreal_edge.machine.groups import CpuGroup, Groups, MemoryGroup, find_groups, read_membership
from distreal_edge.machine.heat import (
    read_firmware_flags,
    read_firmware_throttled,
    read_frequency_capped,
    read_low_voltage,
    read_temperature_c,
)
from distreal_edge.machine.limits import Quota, read_cpuset, read_group_memory, read_quotas
from distreal_edge.machine.memory import read_available_bytes, read_resident_bytes
from distreal_edge.machine.power import read_on_battery
from distreal_edge.machine.pressure import read_own_waits, read_waited_seconds
from distreal_edge.machine.processors import own_affinity, parse_cpus, read_busy_seconds
from distreal_edge.machine.reader import Conditions, Counters, MachineReader

__all__ = [
    "Conditions",
    "Counters",
    "CpuGroup",
    "Groups",
    "MachineReader",
    "MemoryGroup",
    "Quota",
    "Roots",
    "find_groups",
    "own_affinity",
    "parse_cpus",
    "read_available_bytes",
    "read_busy_seconds",
    "read_cpuset",
    "read_firmware_flags",
    "read_firmware_throttled",
    "read_frequency_capped",
    "read_group_memory",
    "read_low_voltage",
    "read_membership",
    "read_on_battery",
    "read_own_waits",
    "read_quotas",
    "read_resident_bytes",
    "read_temperature_c",
    "read_text",
    "read_waited_seconds",
]
