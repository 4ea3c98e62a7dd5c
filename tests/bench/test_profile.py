from __future__ import annotations

import itertools
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import distreal_edge as de
from distreal_edge.bench import Sensors, State, measure_profile
from distreal_edge.bench.disturbance import (
    Usage,
    heat_before,
    heat_meanwhile,
    others_before,
    others_cores,
    others_meanwhile,
    read_usage,
)
from distreal_edge.bench.profile import SWEEPS
from distreal_edge.dropout import DRAW_POLICIES, Profile
from distreal_edge.errors import DistrealError
from distreal_edge.search import uniform_table

if TYPE_CHECKING:
    from collections.abc import Iterable

COOL = State(temperature_c=50.0, throttled=False, load=0.3)
WARM = State(temperature_c=78.0, throttled=False, load=0.3)
HOT = State(temperature_c=82.0, throttled=False, load=0.3)
THROTTLED = State(temperature_c=None, throttled=True, load=0.3)
UNKNOWN = State(temperature_c=None, throttled=False, load=2.0)

NETWORK = de.zoo.resnet8(image_size=8)
TABLE = uniform_table(NETWORK, rows=3, batch=4)


def sensors(states: Iterable[State] = (), others: Iterable[float] = (), slept: list[float] | None = None) -> Sensors:
    """Return sensors that see these states, then a cool board; and others on these cores, then none, each for 2 s."""
    seen = itertools.chain(states, itertools.repeat(COOL))
    used = itertools.chain(others, itertools.repeat(0.0))
    readings = [Usage(100.0, 1000.0, 10.0)]

    def usage() -> Usage:
        last = readings[-1]
        # Two seconds, in which we compute on three cores ourselves.
        readings.append(Usage(last.time_s + 2.0, last.busy_s + 6.0 + 2.0 * next(used), last.own_s + 6.0))
        return last

    return Sensors(lambda: next(seen), usage, [].append if slept is None else slept.append)


def measure(watched: Sensors, *, forced: bool = False, threads: tuple[int, ...] = (1,)) -> Profile:
    return measure_profile(NETWORK, TABLE, threads=threads, seconds=1e-6, forced=forced, sensors=watched)


def test_others_are_judged_by_their_processor_time_and_not_by_ours() -> None:
    before = Usage(10.0, 500.0, 20.0)
    assert others_cores(before, Usage(12.0, 506.0, 25.0)) == 0.5
    assert others_cores(before, Usage(12.0, 504.0, 24.0)) == 0.0
    assert others_cores(before, Usage(12.0, 503.9, 24.0)) == 0.0  # counters are coarse
    assert others_cores(before, before) == 0.0


def test_an_idle_board_has_others_that_use_next_to_nothing() -> None:
    assert others_before(0.05, 3.0) is None  # the load average still tells of what has ended
    assert others_before(1.34, 1.7) == "others use 1.3 cores (load average 1.7)"


@pytest.mark.parametrize(
    ("cores", "early", "late"),
    [
        ([], False, False),
        ([0.1, 0.2, 0.1, 0.0, 0.1], False, False),
        ([0.1, 0.8, 0.1, 0.0, 0.1], False, False),  # medians do not see it
        ([0.1, 1.8, 0.1, 0.0, 0.1], False, True),
        ([0.1, 0.8], False, True),
        ([0.8], False, True),
        ([0.3, 0.0, 0.3, 0.0, 0.0], True, True),
    ],
)
def test_one_busy_stretch_of_many_is_forgiven(cores: list[float], *, early: bool, late: bool) -> None:
    assert (others_meanwhile(cores, finished=False) is not None) == early
    assert (others_meanwhile(cores, finished=True) is not None) == late


def test_what_others_used_is_said() -> None:
    assert others_meanwhile([1.0, 2.0], finished=True) == "others used 2.0 cores at times, 1.5 on average"


def test_heat_is_judged_more_strictly_before_than_meanwhile() -> None:
    assert heat_before(COOL) is heat_before(UNKNOWN) is None
    assert heat_before(WARM) == "this machine is 78 degrees hot"
    assert heat_meanwhile(COOL) is heat_meanwhile(UNKNOWN) is heat_meanwhile(WARM) is None
    assert heat_meanwhile(HOT) == "this machine became 82 degrees hot"
    for judge in (heat_before, heat_meanwhile):
        said = judge(THROTTLED)
        assert said is not None
        assert said.endswith("throttled (by heat or a weak power supply)")


@pytest.mark.alone
def test_somebody_elses_work_is_seen_on_this_machine() -> None:
    busy = "import time; end = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as other:
        try:
            before = read_usage()
            time.sleep(1.0)
            assert others_cores(before, read_usage()) > 0.3
        finally:
            other.kill()


def test_a_profile_tells_every_row_at_every_number_of_threads() -> None:
    shares: list[float] = []
    profile = measure_profile(
        NETWORK, TABLE, threads=(2, 1, 2), seconds=1e-6, sensors=sensors(), progress=shares.append
    )
    assert Profile.from_bytes(profile.to_bytes()) == profile
    assert (profile.network, profile.table, profile.draw) == (TABLE.network, TABLE.digest, "ordered")
    assert (profile.batch, profile.threads, profile.disturbed) == (4, (1, 2), ())
    assert profile.instruction_set == de.Engine(NETWORK).instruction_set
    assert (profile.machine.temperature_before_c, profile.machine.temperature_after_c) == (50.0, 50.0)
    assert (profile.machine.load, profile.machine.others_cores) == (0.3, 0.0)
    assert [(row.vector, row.macs) for row in profile.rows] == [(row.vector, row.macs) for row in TABLE.rows]
    for row in profile.rows:
        for step in row.steps:
            assert 0.0 < step.minimum_s <= step.median_s
            assert step.repeats == SWEEPS  # as little time was asked for as can be
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_memory_is_that_of_the_row_alone_as_its_cost_says() -> None:
    profile = measure_profile(NETWORK, TABLE, threads=(1, 2), batch=8, seconds=1e-6, sensors=sensors())
    assert profile.batch == 8
    for row in profile.rows:
        single, double = row.steps
        assert single.peak_bytes == NETWORK.cost(row.vector, 8).peak_bytes
        assert double.peak_bytes >= single.peak_bytes


def test_the_time_asked_for_is_filled_and_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    took = itertools.cycle([0.01, 0.02, 0.03])
    monkeypatch.setattr("distreal_edge.bench.profile.timed", lambda _run, _count: [next(took)])
    profile = measure_profile(NETWORK, TABLE, threads=(1,), seconds=0.29, sensors=sensors())
    # Of .29 s a fifth is a visit's: of .058 s the first three steps take .06.
    for row in profile.rows:
        assert row.steps[0].repeats == 3 * SWEEPS
        assert (row.steps[0].minimum_s, row.steps[0].median_s) == (0.01, 0.02)
        assert row.steps[0].spread == pytest.approx(1.0)


def test_the_network_is_left_as_it_is() -> None:
    before = {name: tensor.copy() for name, tensor in NETWORK.weights.items()}
    measure(sensors())
    assert all(np.array_equal(NETWORK.weights[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("policy", DRAW_POLICIES)
def test_survivors_are_drawn_as_the_table_says(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[tuple[int, ...], ...]] = []
    real = de.Engine.step

    def step(engine: de.Engine, images: object, labels: object, subset: de.Subset, **others: object) -> float:
        steps.append(tuple(tuple(int(filter_) for filter_ in group) for group in subset.survivors))
        return real(engine, images, labels, subset, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(de.Engine, "step", step)
    table = uniform_table(NETWORK, rows=3, batch=4, draw=policy)
    profile = measure_profile(NETWORK, table, threads=(1,), seconds=1e-6, sensors=sensors())
    assert profile.draw == policy
    cheapest = [subset for subset in steps if len(subset[0]) == min(len(other[0]) for other in steps)]
    different = len(set(cheapest))
    assert different == 1 if policy == "ordered" else different > 1


def test_rows_take_turns_there_and_back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    real = de.Engine.step

    def step(engine: de.Engine, images: object, labels: object, subset: de.Subset, **others: object) -> float:
        kept.append(sum(len(group) for group in subset.survivors))
        return real(engine, images, labels, subset, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(de.Engine, "step", step)
    slept: list[float] = []
    measure_profile(NETWORK, TABLE, threads=(1,), seconds=1e-6, cool_down_s=7.0, sensors=sensors(slept=slept))
    cheap, middle, full = sorted(set(kept))
    there, back = [cheap, middle, full], [full, middle, cheap]
    visits = there + back + there + back + there
    assert kept == there + [row for row in visits for _ in range(2)]  # memory first; one step wakes the clock
    assert slept.count(7.0) == len(visits)


@pytest.mark.parametrize(
    ("watched", "said"),
    [
        (sensors(itertools.repeat(HOT, 500)), "this machine is 82 degrees hot"),
        (sensors(itertools.repeat(THROTTLED, 500)), "this machine is throttled"),
        (sensors(others=[1.5]), r"others use 1\.5 cores \(load average 0\.3\)"),
        # Rest, work, and then a look.
        (sensors([COOL, COOL, THROTTLED]), "this machine became throttled"),
        (sensors(others=[0.0, 1.0, 0.0, 1.0]), r"others used 1\.0 cores at times"),
        (sensors(others=[0.0, 0.0, 9.0]), r"others used 9\.0 cores at times, 1\.8 on average"),
    ],
)
def test_a_disturbed_machine_is_not_measured(watched: Sensors, said: str) -> None:
    with pytest.raises(DistrealError, match=f"not measured: {said}.*; see to that and measure again, or force it"):
        measure(watched)


def test_a_disturbed_machine_is_measured_by_force_and_the_profile_says_so() -> None:
    slept: list[float] = []
    profile = measure(sensors([HOT, COOL, THROTTLED], [1.5, 2.0, 2.0], slept), forced=True)
    assert profile.disturbed == (
        "this machine is 82 degrees hot",
        "others use 1.5 cores (load average 0.3)",
        "others used 2.0 cores at times, 2.0 on average",
    )
    assert sum(slept) < 10.0  # nobody waits for a board to cool down that is measured hot anyway
    assert Profile.from_bytes(profile.to_bytes()) == profile


def test_a_hot_machine_is_waited_for() -> None:
    assert measure(sensors([HOT, HOT, COOL, HOT, COOL])).disturbed == ()


def test_a_short_busy_stretch_does_not_matter() -> None:
    profile = measure(sensors(others=[0.0, 0.0, 0.9]))
    assert profile.disturbed == ()
    assert profile.machine.others_cores == pytest.approx(0.9 / 6)
