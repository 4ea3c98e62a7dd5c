"""Memory, waiting, heat and power: as Linux writes them on boards and laptops, and where it does not."""

from __future__ import annotations

import os
from typing import Any

import pytest

from distreal_edge.machine import (
    read_available_bytes,
    read_firmware_throttled,
    read_frequency_capped,
    read_on_battery,
    read_own_waits,
    read_resident_bytes,
    read_temperature_c,
    read_waited_seconds,
)

PAGE = os.sysconf("SC_PAGE_SIZE")
FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
FREQUENCY = "/sys/devices/system/cpu/cpufreq"


@pytest.mark.parametrize(
    ("text", "available"),
    [
        ("MemTotal:  948012 kB\nMemFree:  10 kB\nMemAvailable:     521024 kB\n", 521024 * 1024),
        ("MemTotal:  948012 kB\nMemFree:  10 kB\n", None),  # before Linux 3.14
        ("MemAvailable: some kB\n", None),
        ("MemAvailable: -5 kB\n", None),
        ("", None),
    ],
)
def test_memory_is_what_linux_says_is_available(lay: Any, text: str, available: int | None) -> None:
    assert read_available_bytes(lay({"/proc/meminfo": text})) == available


def test_what_we_hold_is_counted_in_pages(lay: Any) -> None:
    assert read_resident_bytes(lay({"/proc/self/statm": "9000 250 80 1 0 400 0\n"})) == 250 * PAGE
    assert read_resident_bytes(lay({"/proc/self/statm": "9000\n"})) is None


def test_somebodys_waiting_is_read_in_seconds(lay: Any) -> None:
    pressure = "some avg10=1.52 avg60=0.80 avg300=0.25 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    assert read_waited_seconds(lay({"/proc/pressure/cpu": pressure})) == 2.5
    assert read_waited_seconds(lay({"/proc/pressure/cpu": f"\n\n{pressure}"})) == 2.5
    for odd in ("", "\n\n", "full total=5\n", "some avg10=0\n", "some total=\n", "some total=x\n"):
        assert read_waited_seconds(lay({"/proc/pressure/cpu": odd})) is None


def test_our_own_waiting_is_read_thread_by_thread(lay: Any) -> None:
    roots = lay(
        {
            "/proc/self/task/71/schedstat": "5000 1500000000 12\n",
            "/proc/self/task/72/schedstat": "5000 250000000 12\n",
            "/proc/self/task/73/schedstat": "\n",
            "/proc/self/task/74/status": "Name: trainer\n",
            "/proc/self/task/x/schedstat": "5000 250000000 12\n",
        }
    )
    assert read_own_waits(roots) == {71: 1.5, 72: 0.25}


def test_the_hottest_zone_counts_and_broken_sensors_do_not(lay: Any) -> None:
    roots = lay(
        {
            "/sys/class/thermal/thermal_zone0/temp": "51540\n",
            "/sys/class/thermal/thermal_zone1/temp": "63250\n",
            "/sys/class/thermal/thermal_zone2/temp": "-274000\n",
            "/sys/class/thermal/thermal_zone3/temp": "65535000\n",
            "/sys/class/thermal/thermal_zone4/temp": "hot\n",
            "/sys/class/thermal/thermal_zone5/type": "iwlwifi\n",
            "/sys/class/thermal/cooling_device0/temp": "99000\n",
        }
    )
    assert read_temperature_c(roots) == 63.25


def test_the_processors_own_sensor_counts_and_a_disks_does_not(lay: Any) -> None:
    roots = lay(
        {
            "/sys/class/thermal/thermal_zone0/temp": "16800\n",  # some firmware never says anything else
            "/sys/class/hwmon/hwmon0/name": "k10temp\n",
            "/sys/class/hwmon/hwmon0/temp1_input": "58125\n",
            "/sys/class/hwmon/hwmon0/temp1_crit": "95000\n",
            "/sys/class/hwmon/hwmon1/name": "nvme\n",
            "/sys/class/hwmon/hwmon1/temp1_input": "77850\n",
        }
    )
    assert read_temperature_c(roots) == 58.125


@pytest.mark.parametrize(
    ("text", "throttled"),
    [
        ("0\n", False),
        ("50000\n", False),  # low voltage and throttled, but since the start only
        ("1\n", True),
        ("2\n", True),
        ("4\n", True),
        ("8\n", True),
        ("50005\n", True),
        ("f0000\n", False),
        ("0x50005\n", True),
        ("", None),
        ("none\n", None),
    ],
)
def test_a_raspberry_pi_says_in_bits_whether_it_is_held_back(lay: Any, text: str, throttled: bool | None) -> None:
    assert read_firmware_throttled(lay({FIRMWARE: text})) is throttled


def test_a_frequency_below_what_the_processor_can_do_is_a_cap(lay: Any) -> None:
    roots = lay(
        {
            f"{FREQUENCY}/policy0/scaling_max_freq": "1800000\n",
            f"{FREQUENCY}/policy0/cpuinfo_max_freq": "1800000\n",
            f"{FREQUENCY}/boost": "1\n",
        }
    )
    assert read_frequency_capped(roots) is False
    lay({f"{FREQUENCY}/policy4/scaling_max_freq": "1500000\n", f"{FREQUENCY}/policy4/cpuinfo_max_freq": "2400000\n"})
    assert read_frequency_capped(roots) is True


def supply(name: str, **files: str) -> dict[str, str]:
    return {f"/sys/class/power_supply/{name}/{file}": f"{text}\n" for file, text in files.items()}


BATTERY = supply("BAT0", type="Battery", present="1", status="Discharging")


@pytest.mark.parametrize(
    ("files", "on_battery"),
    [
        (supply("AC", type="Mains", online="0") | BATTERY, True),
        (BATTERY, True),
        (supply("AC", type="Mains", online="1") | BATTERY, False),  # a weak charger
        (supply("usb", type="USB", online="2") | BATTERY, False),
        (supply("AC", type="Mains", online="0") | supply("BAT0", type="Battery", status="Full"), False),
        (supply("BAT0", type="Battery", status="Charging"), False),
        (
            supply("BAT0", type="Battery", status="Charging") | supply("BAT1", type="Battery", status="Discharging"),
            True,
        ),
        (supply("hat", type="UPS", status="Discharging"), True),
        (supply("rpi-poe", type="Mains", online="0"), False),  # the power comes in elsewhere
        (supply("mouse", type="Battery", scope="Device", status="Discharging"), False),
        (supply("AC", type="Mains"), False),
        ({"/sys/class/power_supply/.keep": ""}, False),
        ({}, None),
    ],
)
def test_a_battery_that_empties_while_nothing_else_gives_power_is_seen(
    lay: Any, files: dict[str, str], on_battery: bool | None
) -> None:
    assert read_on_battery(lay(files)) is on_battery


def test_nothing_is_known_of_a_machine_without_files(lay: Any) -> None:
    roots = lay({})
    assert read_own_waits(roots) == {}
    for read in (
        read_available_bytes,
        read_resident_bytes,
        read_waited_seconds,
        read_temperature_c,
        read_firmware_throttled,
        read_frequency_capped,
        read_on_battery,
    ):
        assert read(roots) is None
