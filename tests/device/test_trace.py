from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.device import Trace
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    stretches = draw(st.lists(st.integers(1, 40), max_size=8))
    cores = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.5, 4.0]), min_size=len(stretches) + 1, max_size=9))
    seconds = [0.0]
    for stretch in stretches:
        seconds.append(seconds[-1] + stretch / 8)
    return Trace(tuple(seconds), tuple(cores[: len(seconds)]))


def test_a_file_is_read_with_further_columns_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes("\ufeffcores,seconds,colour\r\n4,0,red\r\n\r\n0.5,2.5,blue\r\n".encode())
    assert Trace.load(file) == Trace((0.0, 2.5), (4.0, 0.5))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "seconds,cores"),
        ("time,cores\n0,4\n", 1, "seconds,cores"),
        ("seconds,cores\n", 1, "at least one line"),
        ("seconds,cores\n0,4\n5,four\n", 3, "must be numbers, got 'four'"),
        ("seconds,cores\n0,4\n5\n", 3, "must be numbers, and here something is missing"),
        ("seconds,cores\n1,4\n", 2, "starts at 0"),
        ("seconds,cores\nnan,4\n", 2, "starts at 0"),
        ("seconds,cores\n0,4\n3,1\n\n3,2\n", 5, "must rise"),
        ("seconds,cores\n0,4\ninf,1\n", 3, "must rise"),
        ("seconds,cores\n0,4\nnan,1\n", 3, "must rise"),
        ("seconds,cores\n0,4\n2,-1\n", 3, "from 0 to 4096"),
        ("seconds,cores\n0,nan\n", 2, "from 0 to 4096"),
        ("seconds,cores\n0,inf\n", 2, "from 0 to 4096"),
        ("seconds,cores\n0,5000\n", 2, "from 0 to 4096"),
        ("seconds,cores,memory\n0,1,lots\n", 2, "memory and temperature must be numbers or empty, got 'lots'"),
        ("seconds,cores,memory\n0,1,-5\n", 2, "memory is in bytes, from 0"),
        ("seconds,cores,memory\n0,1,\n2,1,inf\n", 3, "memory is in bytes, from 0"),
        ("seconds,cores,temperature\n0,1,nan\n", 2, "temperature is in degrees Celsius, from -100 to 300"),
        ("seconds,cores,temperature\n0,1,50\n1,1,51000\n", 3, "got 51000.0"),
        ('seconds,cores\n0,"' + "4" * 200_000 + '"\n', 1, "damaged"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_the_line_and_what_is_wrong(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Trace.load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}:{line}: ")
    assert words in message
    assert "\n" not in message


def test_a_file_that_is_missing_or_no_text_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.csv: cannot read the trace: No such file"):
        Trace.load(tmp_path / "none.csv")
    (tmp_path / "bytes").write_bytes(b"seconds,cores\n0,\xff\n")
    with pytest.raises(ConfigError, match=r"/dev/zero: is a device, not a file"):
        Trace.load("/dev/zero")
    with pytest.raises(ConfigError, match=r"bytes:1: the trace is damaged"):
        Trace.load(tmp_path / "bytes")


@pytest.mark.parametrize(("seconds", "cores"), [((), ()), ((0.0,), ()), ((0.0, 0.0), (1.0, 1.0))])
def test_a_trace_made_by_hand_is_checked_too(seconds: tuple[float, ...], cores: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError):
        Trace(seconds, cores)


def test_the_last_entry_holds_and_each_begins_at_its_second() -> None:
    trace = Trace((0.0, 2.0, 3.5), (4.0, 0.0, 1.5))
    assert [trace.at(second) for second in (0.0, 1.99, 2.0, 3.4, 3.5, 1e9)] == [4.0, 4.0, 0.0, 0.0, 1.5, 1.5]


def test_memory_and_temperature_are_followed_where_the_file_tells_them(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("seconds,cores,memory,temperature\n0,4,1000000,\n2,4,,51.5\n5,3\n")
    trace = Trace.load(file)
    assert [trace.memory_bytes_at(second) for second in (0.0, 1.9, 2.0, 9.0)] == [1e6, 1e6, None, None]
    assert [trace.temperature_c_at(second) for second in (0.0, 2.0, 4.9, 5.0)] == [None, 51.5, 51.5, None]


def test_columns_that_never_say_anything_are_as_good_as_missing(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("seconds,cores,memory,temperature\n0,4,,\n2,1,,\n")
    assert Trace.load(file) == Trace((0.0, 2.0), (4.0, 1.0))
    assert Trace.load(file).memory_bytes_at(1.0) is None


def test_memory_for_some_lines_of_a_trace_only_is_refused() -> None:
    with pytest.raises(ConfigError, match="in every line, or in none"):
        Trace((0.0, 1.0), (4.0, 4.0), (1e9,))
    with pytest.raises(ConfigError, match="from -100 to 300"):
        Trace((0.0,), (4.0,), temperature_c=(math.nan,))


@given(trace=traces(), start=st.floats(0.0, 30.0), work=st.floats(0.0, 40.0), most=st.sampled_from([1.0, 2.0, 8.0]))
def test_work_ends_when_the_integral_of_the_cores_says_so(trace: Trace, start: float, work: float, most: float) -> None:
    end = trace.finish(start, work, most)
    if math.isinf(end):
        assert trace.cores[-1] == 0.0
        end = max(start, trace.seconds[-1])
        assert _integral(trace, start, end, most) < work
    else:
        assert end >= start
        assert _integral(trace, start, end, most) == pytest.approx(work, abs=1e-9)


def _integral(trace: Trace, start: float, end: float, most: float) -> float:
    """Sum over the eighths of seconds that the traces of these tests are made of, cut at both ends."""
    total, left = 0.0, start
    while left < end:
        right = min(end, math.floor(left * 8 + 1) / 8)
        total += min(most, trace.at(left)) * (right - left)
        left = right
    return total


def test_work_waits_out_a_stretch_without_cores() -> None:
    trace = Trace((0.0, 1.0, 4.0), (2.0, 0.0, 0.5))
    assert trace.finish(0.5, 2.0) == pytest.approx(6.0)  # 1 core-second, then 3 seconds of nothing, then half speed
    assert trace.finish(0.5, 1.5, 1.0) == pytest.approx(6.0)


def test_work_that_no_core_is_left_for_never_ends_and_no_work_ends_at_once() -> None:
    trace = Trace((0.0, 1.0), (2.0, 0.0))
    assert trace.finish(0.5, 1.0) == pytest.approx(1.0)
    assert trace.finish(0.5, 1.1) == math.inf
    assert trace.finish(5.0, 0.0) == 5.0
