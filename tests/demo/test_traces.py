from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.demo import default_scenario, make_trace, trace_csv
from distreal_edge.device import Trace

if TYPE_CHECKING:
    from pathlib import Path


def traces(count: int, seed: int) -> list[Trace]:
    return [make_trace(number, duration_s=300.0, seed=seed) for number in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_traces_can_be_made_again_and_differ_between_devices_and_seeds(seed: int) -> None:
    first = traces(9, seed)
    assert first == traces(9, seed)
    for one, other in itertools.combinations(first, 2):
        assert one != other
    assert all(one != other for one, other in zip(first, traces(9, seed + 1), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_cores_change_inside_nearly_every_round(seed: int) -> None:
    length_s = default_scenario().round_s
    for trace in traces(4, seed):
        starts = np.arange(0.0, 300.0 - length_s, 1.0)
        changed = [len({trace.at(start + second) for second in np.arange(0.0, length_s, 0.25)}) > 1 for start in starts]
        assert np.mean(changed) > 0.95


def test_boards_have_the_cores_that_their_stories_say() -> None:
    mostly_free, day_and_night, bursty, weak = traces(4, 1)
    assert max(mostly_free.cores) == 4.0
    assert set(day_and_night.cores) == {1.0, 3.5}
    assert set(bursty.cores) == {1.0, 2.0, 3.0, 4.0}
    assert max(weak.cores) <= 2.0
    assert min(weak.cores) >= 0.5
    seconds = np.arange(0.0, 300.0, 0.1)
    means = [np.mean([trace.at(second) for second in seconds]) for trace in (mostly_free, weak)]
    assert means[0] > 2 * means[1]


def test_all_boards_together_never_need_more_than_two_cores_of_this_machine() -> None:
    scenario = default_scenario()
    most = sum(max(trace.cores) for trace in traces(scenario.devices, scenario.seed))
    assert most * scenario.core_speed <= 2.0


@st.composite
def any_traces(draw: st.DrawFn) -> Trace:
    """Draw traces as somebody may record them, of any length and precision, with and without the further columns."""
    gaps = draw(st.lists(st.floats(1e-3, 1e6), max_size=5))
    seconds = tuple(itertools.accumulate(gaps, initial=0.0))

    def column(values: st.SearchStrategy[float | None]) -> st.SearchStrategy[tuple[float | None, ...]]:
        return st.lists(values, min_size=len(seconds), max_size=len(seconds)).map(
            lambda drawn: tuple(drawn) if any(value is not None for value in drawn) else ()
        )

    return Trace(
        seconds,
        tuple(draw(st.lists(st.floats(0.0, 4096.0), min_size=len(seconds), max_size=len(seconds)))),
        draw(st.just(()) | column(st.none() | st.floats(0.0, 2.0**50))),
        draw(st.just(()) | column(st.none() | st.floats(-100.0, 300.0))),
    )


@given(any_traces())
@settings(max_examples=50)
def test_whatever_is_written_is_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = tmp_path_factory.mktemp("traces") / "trace.csv"
    path.write_text(trace_csv(trace), encoding="utf-8")
    assert Trace.load(path) == trace


def test_made_up_traces_are_easy_to_read() -> None:
    assert trace_csv(Trace((0.0, 12.5), (4.0, 1.0))) == "seconds,cores\n0,4\n12.5,1\n"


def test_what_is_written_is_what_a_device_reads(tmp_path: Path) -> None:
    for number, trace in enumerate(traces(4, 2)):
        path = tmp_path / f"{number}.csv"
        path.write_text(trace_csv(trace), encoding="utf-8")
        assert Trace.load(path) == trace
