from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from distreal_edge.transport import SessionNumbers

if TYPE_CHECKING:
    from pathlib import Path


def test_numbers_rise_within_a_run_and_from_run_to_run_even_when_the_clock_goes_back(tmp_path: Path) -> None:
    path, clock = tmp_path / "session", iter((1000, 1000, 2000, 3, 4))
    first = SessionNumbers(path, lambda: next(clock))
    assert [first(), first(), first()] == [1000, 1001, 2000]
    second = SessionNumbers(path, lambda: next(clock))
    assert [second(), second()] == [2001, 2002]


@pytest.mark.parametrize("left", [b"", b"x", b"-5", b"9" * 400, b"\xff"])
def test_a_damaged_file_leaves_the_time(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "session").write_bytes(left)
    assert SessionNumbers(tmp_path / "session", lambda: 77)() == 77


def test_a_disk_that_takes_nothing_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers = SessionNumbers(tmp_path / "gone" / "session", lambda: 5)
    assert [numbers(), numbers()] == [5, 6]
    assert "cannot be written" in caplog.text
