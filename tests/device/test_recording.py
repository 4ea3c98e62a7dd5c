"""A recorded trace tells what was seen, with few lines, and is read back as it was written."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.device import Availability, Trace
from distreal_edge.device.recording import HEADER, Recorder

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

Samples = list[tuple[float, Availability]]


@st.composite
def samples(draw: st.DrawFn, shortest_s: float = 0.25) -> Samples:
    """Draw what a monitor may say, at rising times."""
    gaps = draw(st.lists(st.sampled_from([shortest_s, 0.3337, 4.0, 1000.0]), max_size=12))
    taken, second = [], draw(st.sampled_from([0.0, 0.0004]))
    for gap in [0.0, *gaps]:
        second += gap
        taken.append(
            (
                second,
                Availability(
                    cores=draw(st.sampled_from([0.0, 0.0004, 1.0, 1.01, 1.04, 1.06, 3.999]) | st.floats(0.0, 4096.0)),
                    memory_bytes=draw(st.none() | st.sampled_from([1e9, 1.01e9, 1.03e9]) | st.floats(0.0, 2.0**50)),
                    temperature_c=draw(st.none() | st.sampled_from([50.0, 50.7, 51.2]) | st.floats(-40.0, 150.0)),
                ),
            )
        )
    return taken


def recorded(taken: Iterable[tuple[float, Availability]]) -> list[str]:
    recorder = Recorder()
    return [line for second, sample in taken if (line := recorder.line(second, sample)) is not None]


def close(written: float | None, seen: float | None, within: float) -> bool:
    if written is None or seen is None:
        return written is seen
    return math.isclose(written, seen, rel_tol=1e-12, abs_tol=within)


@given(samples())
@settings(max_examples=50)
def test_what_is_read_back_is_what_was_seen_at_every_moment(
    tmp_path_factory: pytest.TempPathFactory, taken: Samples
) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    path.write_text(HEADER + "".join(recorded(taken)))
    trace = Trace.load(path)
    for second, sample in taken:
        at_s = round(second, 3)
        assert close(trace.at(at_s), sample.cores, 0.0501)
        assert close(
            trace.memory_bytes_at(at_s), sample.memory_bytes, 0.0201 * (trace.memory_bytes_at(at_s) or 0) + 0.5
        )
        assert close(trace.temperature_c_at(at_s), sample.temperature_c, 1.051)


@given(samples(shortest_s=0.0001))
def test_every_line_has_news_or_comes_five_seconds_after_the_one_before(taken: Samples) -> None:
    lines = [line.rstrip("\n").split(",") for line in recorded(taken)]
    for before, after in pairwise(lines):
        waited_s = float(after[0]) - float(before[0])
        assert waited_s > 0.0
        moved = abs(float(after[1]) - float(before[1])) >= 0.05 or (float(after[1]) == 0.0) != (float(before[1]) == 0.0)
        assert waited_s >= 5.0 or moved or before[2:] != after[2:]


def test_a_quiet_hour_takes_few_lines_and_a_change_shows_at_once() -> None:
    quiet = [(second / 4.0, Availability(3.5 + 0.02 * (second % 2), 1e9, 50.0)) for second in range(4 * 3600)]
    lines = recorded([*quiet, (3600.0, Availability(1.0, 1e9, 50.0))])
    assert 700 <= len(lines) <= 725
    assert lines[0] == "0.000,3.500,1000000000,50.0\n"
    assert lines[-1] == "3600.000,1.000,1000000000,50.0\n"


def test_a_pause_is_told_however_little_was_free() -> None:
    lines = recorded([(0.0, Availability(0.03)), (0.25, Availability(0.0, paused="quiet hours"))])
    assert lines == ["0.000,0.030,,\n", "0.250,0.000,,\n"]
