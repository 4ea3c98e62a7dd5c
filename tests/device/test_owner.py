from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.device import OwnerLimits, QuietHours
from distreal_edge.device.owner import is_too_hot, pause_reason

NIGHT = QuietHours(22 * 60, 7 * 60)
LUNCH = QuietHours(12 * 60, 13 * 60 + 30)
FILE = Path("/run/pause")


def reason(limits: OwnerLimits, clock: str = "15:00", **seen: bool | None) -> str | None:
    hours, minutes = clock.split(":")
    usual: dict[str, bool | None] = {"too_hot": False, "on_battery": False, "pause_file_exists": False}
    return pause_reason(limits, minute=int(hours) * 60 + int(minutes), **usual | seen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("clock", "said"),
    [
        ("21:59", None),
        ("22:00", "quiet hours 22:00-07:00"),
        ("00:00", "quiet hours 22:00-07:00"),
        ("06:59", "quiet hours 22:00-07:00"),
        ("07:00", None),
        ("11:59", None),
        ("12:00", "quiet hours 12:00-13:30"),
        ("13:29", "quiet hours 12:00-13:30"),
        ("13:30", None),
    ],
)
def test_quiet_hours_end_when_they_say_and_go_over_midnight(clock: str, said: str | None) -> None:
    assert reason(OwnerLimits(quiet_hours=(NIGHT, LUNCH)), clock) == said


@settings(deadline=None)
@given(begin=st.integers(0, 1439), minutes=st.integers(1, 1439), offset=st.integers(0, 1439))
def test_quiet_hours_cover_as_many_minutes_as_they_are_long(begin: int, minutes: int, offset: int) -> None:
    hours = QuietHours(begin, (begin + minutes) % 1440)
    assert hours.cover((begin + offset) % 1440) == (offset < minutes)


def test_a_whole_day_can_be_quiet() -> None:
    assert all(QuietHours(0, 1440).cover(minute) for minute in range(1440))
    assert str(QuietHours(0, 1440)) == "00:00-24:00"


def test_heat_pauses_above_the_highest_temperature_and_until_it_is_five_degrees_cooler() -> None:
    limits = OwnerLimits(highest_temperature_c=70.0)
    hot, told = False, []
    for degrees in (69.0, 70.0, 70.1, 69.0, 65.1, 65.0, 69.0, 71.0):
        hot = is_too_hot(limits, degrees, was=hot)
        told.append(hot)
    assert told == [False, False, True, True, True, False, False, True]
    assert reason(limits, too_hot=True) == "hotter than 70 degrees"


def test_a_sensor_that_falls_silent_changes_nothing_and_no_limit_is_never_too_hot() -> None:
    limits = OwnerLimits(highest_temperature_c=70.0)
    assert is_too_hot(limits, None, was=True)
    assert not is_too_hot(limits, None, was=False)
    assert not is_too_hot(OwnerLimits(), 149.0, was=True)


def test_the_pause_file_counts_while_it_is_there_or_cannot_be_looked_for() -> None:
    limits = OwnerLimits(pause_file=FILE)
    assert reason(limits) is None
    assert reason(limits, pause_file_exists=True) == "/run/pause exists"
    assert reason(limits, pause_file_exists=None) == "/run/pause cannot be looked for, its folder is closed to us"
    assert reason(OwnerLimits(), pause_file_exists=True) is None


def test_a_battery_is_spared_unless_the_owner_says_otherwise() -> None:
    assert reason(OwnerLimits(), on_battery=True) == 'on battery; on_battery = "train" below [resources] would allow it'
    assert reason(OwnerLimits(train_on_battery=True), on_battery=True) is None
    assert reason(OwnerLimits(), on_battery=False) is None
