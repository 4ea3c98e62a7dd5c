from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.errors import ConfigError
from distreal_edge.simulate.resources import make_trace
from distreal_edge.simulate.scenario import Availability

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from distreal_edge.device import Trace

HORIZON_S = 4000.0


def made(availability: Availability, device: int = 0, *, seed: int = 0, horizon_s: float = HORIZON_S) -> Trace:
    return make_trace(availability, device, seed=seed, every_s=60.0, horizon_s=horizon_s)


def looked_at(trace: Trace, horizon_s: float = HORIZON_S, every_s: float = 0.5) -> NDArray[np.float64]:
    """What is free at the middle of every half second."""
    return np.array([trace.at(second) for second in np.arange(every_s / 2, horizon_s, every_s)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text("seconds,cores,memory\n0,1,100\n2,2,\n3,3,300\n7,4,400\n")
    (tmp_path / "b.csv").write_text("seconds,cores\n0,0.5\n")
    return tmp_path


def kinds(folder: Path) -> list[Availability]:
    return [
        Availability(kind="constant"),
        Availability(kind="redraw", least=0.1, most=0.9),
        Availability(kind="markov", least=0.1, most=0.9, on_s=20.0, off_s=60.0),
        Availability(kind="diurnal", least=0.1, most=0.9, day_s=1000.0, every_s=10.0),
        Availability(kind="recorded", traces=str(folder)),
    ]


def test_the_same_seed_makes_the_same_trace(folder: Path) -> None:
    for availability in kinds(folder):
        assert made(availability, 3, seed=7) == made(availability, 3, seed=7)


@pytest.mark.parametrize("kind", ["redraw", "markov", "diurnal"])
def test_devices_and_seeds_differ(folder: Path, kind: str) -> None:
    (availability,) = (one for one in kinds(folder) if one.kind == kind)
    traces = {made(availability, device, seed=seed) for device in range(4) for seed in range(3)}
    assert len(traces) == 12


def test_constant_devices_take_turns_at_the_shares() -> None:
    availability = Availability(shares=(1.0, 0.5, 0.25))
    assert [made(availability, device).at(HORIZON_S) for device in range(5)] == [1.0, 0.5, 0.25, 1.0, 0.5]


@pytest.mark.parametrize("kind", ["redraw", "markov", "diurnal"])
def test_nobody_has_less_than_the_least_or_more_than_the_most(folder: Path, kind: str) -> None:
    (availability,) = (one for one in kinds(folder) if one.kind == kind)
    cores = np.concatenate([made(availability, device).cores for device in range(10)])
    assert cores.min() >= 0.1
    assert cores.max() <= 0.9


def test_redraws_come_every_so_often_and_are_uniform() -> None:
    trace = made(Availability(kind="redraw", least=0.2, most=1.0, every_s=8.0), horizon_s=40_000.0)
    assert trace.seconds == tuple(8.0 * number for number in range(5000))
    # A uniform number's mean is within 4 standard errors of the middle, and each tenth holds a tenth.
    assert np.mean(trace.cores) == pytest.approx(0.6, abs=4 * 0.8 / np.sqrt(12 * 5000))
    counts, _ = np.histogram(trace.cores, bins=10, range=(0.2, 1.0))
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_without_a_time_of_their_own_redraws_come_once_a_round() -> None:
    assert made(Availability(kind="redraw")).seconds[:3] == (0.0, 60.0, 120.0)


def test_a_markov_board_is_on_for_its_share_of_the_time_from_the_first_second_on() -> None:
    availability = Availability(kind="markov", least=0.0, most=1.0, on_s=10.0, off_s=30.0)
    traces = [made(availability, device, horizon_s=400.0) for device in range(400)]
    # 400 boards at one time: 4 standard errors of a coin of 1/4.
    for second in (0.0, 5.0, 200.0):
        assert np.mean([trace.at(second) for trace in traces]) == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / 400))


def test_a_markov_board_stays_on_and_off_for_as_long_as_it_says_in_the_mean() -> None:
    trace = made(Availability(kind="markov", least=0.0, most=1.0, on_s=10.0, off_s=30.0), horizon_s=100_000.0)
    spans = np.diff(trace.seconds)
    on = np.array(trace.cores[:-1]) == 1.0
    assert np.all(on[1:] != on[:-1])
    assert spans[on].mean() == pytest.approx(10.0, rel=0.1)
    assert spans[~on].mean() == pytest.approx(30.0, rel=0.1)
    # Exponential: as wide as it is long, and without memory.
    assert spans[on].std() == pytest.approx(10.0, rel=0.15)


def test_a_diurnal_board_comes_and_goes_once_a_day_each_in_its_own_time_zone() -> None:
    availability = Availability(kind="diurnal", least=0.0, most=1.0, day_s=100.0, every_s=1.0)
    phases = []
    for device in range(6):
        waves = np.fft.rfft(np.array(made(availability, device, horizon_s=1000.0).cores) - 0.5)
        assert np.argmax(np.abs(waves)) == 10  # ten days in a thousand seconds
        phases.append(float(np.angle(waves[10])))
    assert np.ptp(phases) > 1.0


def test_recorded_boards_take_turns_at_the_traces(folder: Path) -> None:
    availability = Availability(kind="recorded", traces=str(folder))
    assert set(made(availability, 1).cores) == set(made(availability, 3).cores) == {0.5}
    assert set(made(availability, 0).cores) == {1.0, 2.0, 3.0, 4.0}


def test_a_recorded_trace_repeats_from_another_place_with_every_entry_as_long_as_it_was(folder: Path) -> None:
    availability = Availability(kind="recorded", traces=str(folder))
    begins = set()
    for device in range(0, 12, 2):
        trace = made(availability, device, horizon_s=200.0)
        # Entries of 2, 1 and 4 seconds, and the last one, whose end nobody saw, of 7/3.
        long = {1.0: 2.0, 2.0: 1.0, 3.0: 4.0, 4.0: 7 / 3}
        spans = np.diff(trace.seconds)
        assert spans[1:] == pytest.approx([long[cores] for cores in trace.cores[1:-1]])
        assert spans[0] <= long[trace.cores[0]] + 1e-9
        assert all(after == before % 4 + 1 for before, after in zip(trace.cores, trace.cores[1:], strict=False))
        assert trace.seconds[-1] > 200.0 - 4.0 - 1e-9
        begins.add((trace.cores[0], round(float(spans[0]), 6)))
    assert len(begins) == 6


def test_memory_moves_with_the_cores_of_a_recorded_trace(folder: Path) -> None:
    trace = made(Availability(kind="recorded", traces=str(folder)), 2, horizon_s=50.0)
    known = {1.0: 100.0, 2.0: None, 3.0: 300.0, 4.0: 400.0}
    assert trace.memory_bytes == tuple(known[cores] for cores in trace.cores)


def test_a_folder_without_traces_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^availability.traces: .*no trace in it"):
        made(Availability(kind="recorded", traces=str(tmp_path)))
