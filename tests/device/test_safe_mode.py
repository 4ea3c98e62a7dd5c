"""Crashes are counted across runs, and after too many of them a device rests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.device import safe_mode
from distreal_edge.device.safe_mode import REST_S, WITHIN_S, History, SafeMode, begun, crashes_counted
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "crashes.json"


def crash(path: Path, times: int) -> None:
    """Begin runs that never say that they end."""
    for _ in range(times):
        SafeMode(path)


def test_a_start_after_an_orderly_end_is_no_crash() -> None:
    assert begun(History(running=False, crashes_s=(100.0,)), 200.0) == History(running=True, crashes_s=(100.0,))


def test_a_start_while_a_run_seems_to_go_on_is_a_crash() -> None:
    assert begun(History(running=True, crashes_s=(100.0,)), 200.0).crashes_s == (100.0, 200.0)


@given(st.lists(st.floats(0.0, 1e10)), st.floats(0.0, 1e10))
def test_only_crashes_of_the_last_minutes_count_whichever_way_the_clock_went(
    crashes_s: list[float], now: float
) -> None:
    kept = begun(History(crashes_s=tuple(crashes_s)), now).crashes_s
    assert list(kept) == [each for each in crashes_s if -WITHIN_S <= each - now <= WITHIN_S]


def test_a_device_rests_after_the_third_crash_and_not_before(path: Path) -> None:
    crash(path, 2)
    assert not SafeMode(path).on
    assert SafeMode(path).on


def test_orderly_ends_in_between_do_not_hide_crashes(path: Path) -> None:
    for _ in range(3):
        crash(path, 1)
        SafeMode(path).end()
    assert SafeMode(path).on


def test_runs_that_end_in_order_leave_nothing_behind(path: Path) -> None:
    for _ in range(5):
        with crashes_counted(path) as mode:
            assert not mode.on
            assert path.exists()
        assert not path.exists()


@pytest.mark.parametrize(
    ("error", "counts"), [(StateError, 0), (KeyboardInterrupt, 0), (ValueError, 1), (MemoryError, 1)]
)
def test_errors_on_purpose_are_no_crashes_and_others_are(path: Path, error: type[BaseException], counts: int) -> None:
    with pytest.raises(error), crashes_counted(path):
        raise error
    assert path.exists() == bool(counts)
    SafeMode(path)
    assert len(safe_mode._read(path).crashes_s) == counts


def test_a_full_disk_keeps_no_device_from_starting_and_ending(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise StateError("crashes.json: cannot be written: No space left on device")

    monkeypatch.setattr(safe_mode, "write_durably", refuse)
    monkeypatch.setattr(safe_mode, "remove_durably", refuse)
    with crashes_counted(path) as mode:
        assert not mode.on
    assert [record.message.partition(": ")[0] for record in caplog.records] == ["crashes cannot be counted"] * 2


def test_the_rest_ends_after_its_time_without_a_crash_and_the_crashes_are_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(path, 3)
    mode = SafeMode(path)
    assert "crashed 3 times within 10 min; trains again in 30 min" in mode.explanation
    assert not mode.over()
    begun_s = safe_mode.time.monotonic()
    monkeypatch.setattr(safe_mode.time, "monotonic", lambda: begun_s + REST_S - 60.0)
    assert not mode.over()
    assert "trains again in 1 min" in mode.explanation
    monkeypatch.setattr(safe_mode.time, "monotonic", lambda: begun_s + REST_S)
    assert (mode.over(), mode.on, mode.over()) == (True, False, False)
    assert not SafeMode(path).on


def test_the_owner_ends_the_rest_by_removing_the_file(path: Path) -> None:
    crash(path, 3)
    mode = SafeMode(path)
    assert str(path) in mode.explanation
    path.unlink()
    assert mode.over()
    assert not mode.on
    assert path.exists()  # a crash from now on counts again
    crash(path, 1)
    assert not SafeMode(path).on


def test_an_owner_who_removes_the_file_and_restarts_at_once_is_heard_as_well(path: Path) -> None:
    crash(path, 3)
    mode = SafeMode(path)
    path.unlink()
    mode.end()
    assert not SafeMode(path).on


def test_an_end_that_was_noted_stays_so(path: Path) -> None:
    crash(path, 3)
    mode = SafeMode(path)
    mode.end()
    path.unlink()
    assert not mode.over()
    assert not path.exists()


def test_a_crash_in_safe_mode_begins_the_rest_anew(path: Path) -> None:
    crash(path, 5)
    assert SafeMode(path).on


@pytest.mark.parametrize("content", [b"", b"[]", b'{"running":true,"crashes_s":["x"]}', b"\xff\0", b'{"run":1}'])
def test_a_file_that_cannot_be_read_is_said_and_forgotten(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    assert not SafeMode(path).on
    assert str(path) in caplog.text
