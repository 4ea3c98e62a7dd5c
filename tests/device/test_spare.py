from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.device.spare import most_cores, spare_bytes, spare_cores
from distreal_edge.machine import Conditions, Counters, Quota

START = Counters(
    time_s=100.0, allowed=frozenset({0, 1, 2, 3}), busy_s={0: 10.0, 1: 20.0, 2: 30.0, 3: 40.0, 4: 50.0}, own_s=5.0
)


def later(seconds: float, *, own: float = 0.0, busy: dict[int, float] | None = None, **changed: object) -> Counters:
    """Return the counters after some time, in which we used `own` cores and every CPU was so `busy`."""
    passed = {cpu: before + seconds * (busy or {}).get(cpu, 0.0) for cpu, before in START.busy_s.items()}
    return replace(
        START,
        time_s=START.time_s + seconds,
        own_s=START.own_s + seconds * own,
        busy_s=passed,
        **changed,  # type: ignore[arg-type]
    )


def test_what_others_use_of_our_cpus_is_gone_and_what_we_use_is_ours() -> None:
    assert spare_cores(START, later(0.5)) == pytest.approx(4.0)
    assert spare_cores(START, later(0.5, own=2.0, busy={0: 1.0, 1: 1.0, 2: 0.5})) == pytest.approx(3.5)
    assert spare_cores(START, later(0.5, busy={0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0})) == pytest.approx(0.0)


def test_what_others_use_of_cpus_that_are_not_ours_is_no_loss() -> None:
    assert spare_cores(START, later(2.0, busy={4: 1.0})) == pytest.approx(4.0)


def test_counters_that_run_ahead_or_back_make_no_more_cores_than_there_are() -> None:
    assert spare_cores(START, later(0.5, own=2.0)) == pytest.approx(4.0)
    assert spare_cores(START, later(0.5, busy={0: -3.0})) == pytest.approx(4.0)
    assert spare_cores(START, replace(START, time_s=99.0)) == 4.0
    assert spare_cores(START, START) == 4.0


def test_cpus_that_are_taken_away_count_at_once_and_others_on_the_rest_are_known() -> None:
    after = later(0.5, busy={0: 0.25, 1: 1.0, 2: 1.0, 3: 1.0}, allowed=frozenset({0, 1}))
    assert spare_cores(START, after) == pytest.approx(0.75)
    # What we used is spread over where we could have run: 1.3 cores on CPUs that were busy for 0.25, 1, 1 and 1.
    after = later(0.5, own=1.3, busy={0: 0.25, 1: 1.0, 2: 1.0, 3: 1.0}, allowed=frozenset({0, 1}))
    assert spare_cores(START, after) == pytest.approx(2.0 - (1.25 - 1.3 * 1.25 / 3.25))


def test_cpus_that_are_given_to_us_count_at_once() -> None:
    after = later(0.5, own=1.0, busy={0: 1.0, 4: 0.5}, allowed=frozenset({0, 1, 2, 3, 4}))
    assert spare_cores(START, after) == pytest.approx(4.5)


def test_cpus_that_nobody_counts_are_free() -> None:
    assert spare_cores(START, later(0.5, allowed=frozenset({8, 9}))) == pytest.approx(2.0)
    assert spare_cores(replace(START, busy_s={}), replace(START, busy_s={}, time_s=101.0)) == pytest.approx(4.0)


def test_the_smallest_quota_is_the_most() -> None:
    assert most_cores(START) == 4.0
    assert most_cores(replace(START, quotas=(Quota("a", 3.0, None), Quota("b", 0.5, None)))) == 0.5
    assert most_cores(replace(START, quotas=(Quota("a", 64.0, None),))) == 4.0


def test_each_groups_quota_is_less_by_what_others_in_that_very_group_used() -> None:
    before = replace(START, quotas=(Quota("own", 1.0, 7.0), Quota("top", 2.0, 70.0)))

    def spare(own: float, in_own: float, in_top: float) -> float:
        quotas = (Quota("own", 1.0, 7.0 + in_own * 0.5), Quota("top", 2.0, 70.0 + in_top * 0.5))
        return spare_cores(before, later(0.5, own=own, quotas=quotas))

    assert spare(0.0, 0.0, 0.0) == pytest.approx(1.0)
    assert spare(0.75, 0.75, 0.75) == pytest.approx(1.0)
    assert spare(0.5, 0.7, 0.9) == pytest.approx(0.8)
    assert spare(0.5, 0.7, 2.2) == pytest.approx(0.3)
    assert spare(0.0, 0.1, 2.5) == pytest.approx(-0.5)


def test_a_group_that_is_new_or_not_counted_has_its_whole_quota() -> None:
    after = later(0.5, own=0.1, quotas=(Quota("new", 0.5, 900.0), Quota("uncounted", 0.6, None)))
    assert spare_cores(START, after) == pytest.approx(0.5)
    assert spare_cores(replace(START, quotas=(Quota("new", 0.5, None),)), after) == pytest.approx(0.5)


FULL = {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}
WAITING = replace(START, waited_s=8.0, own_waits_s={71: 1.0, 72: 2.0})


def waited(seconds: float, ours: dict[int, float], busy: dict[int, float] = FULL) -> Counters:
    return later(1.0, own=3.0, busy=busy, waited_s=8.0 + seconds, own_waits_s=ours)


def test_others_who_wait_for_a_cpu_want_more_than_they_use() -> None:
    assert spare_cores(WAITING, waited(0.0, {71: 1.0, 72: 2.0})) == pytest.approx(3.0)
    assert spare_cores(WAITING, waited(0.4, {71: 1.0, 72: 2.0})) == pytest.approx(2.6)


def test_our_own_waiting_is_not_theirs() -> None:
    assert spare_cores(WAITING, waited(0.4, {71: 1.25, 72: 2.05})) == pytest.approx(2.9)
    assert spare_cores(WAITING, waited(0.4, {71: 1.3, 72: 2.3})) == pytest.approx(3.0)
    assert spare_cores(WAITING, waited(0.4, {71: 1.0, 72: 2.0, 73: 0.15})) == pytest.approx(2.75)


def test_nothing_is_known_of_others_waiting_when_a_thread_of_ours_took_its_count_along() -> None:
    assert spare_cores(WAITING, waited(0.4, {72: 2.0})) == pytest.approx(3.0)
    assert spare_cores(WAITING, waited(0.4, {})) == pytest.approx(3.0)
    assert spare_cores(START, waited(0.4, {71: 1.0, 72: 2.0})) == pytest.approx(3.0)
    unseen = replace(START, waited_s=8.0, own_waits_s={})  # Linux counts it, but not for threads
    assert spare_cores(unseen, waited(0.4, {})) == pytest.approx(3.0)


def test_who_waits_although_a_cpu_idles_does_not_wait_for_ours() -> None:
    idle = {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.7}
    assert spare_cores(WAITING, waited(0.25, {71: 1.0, 72: 2.0}, idle)) == pytest.approx(3.3)
    assert spare_cores(WAITING, waited(0.4, {71: 1.0, 72: 2.0}, idle)) == pytest.approx(3.2)


def test_memory_that_training_holds_is_still_its_own() -> None:
    idle = Conditions(memory_bytes=1000, resident_bytes=300)
    assert spare_bytes(idle, 300) == 1000.0
    assert spare_bytes(replace(idle, memory_bytes=600, resident_bytes=700), 300) == 1000.0
    assert spare_bytes(replace(idle, resident_bytes=200), 300) == 1000.0
    assert spare_bytes(replace(idle, resident_bytes=None), 300) == 1000.0
    assert spare_bytes(idle, None) == 1000.0
    assert spare_bytes(Conditions(resident_bytes=400), 300) is None


seconds = st.floats(0.0, 1e9)
by_number = st.dictionaries(st.integers(0, 5), seconds, max_size=6)
quotas = st.lists(
    st.builds(Quota, st.sampled_from("abc"), st.floats(1e-6, 1e4), st.one_of(st.none(), seconds)), max_size=3
).map(tuple)
counters = st.builds(
    Counters,
    time_s=seconds,
    allowed=st.frozensets(st.integers(0, 5), min_size=1),
    busy_s=by_number,
    own_s=seconds,
    quotas=quotas,
    waited_s=st.one_of(st.none(), seconds),
    own_waits_s=st.one_of(st.none(), by_number),
)


@settings(deadline=None)
@given(before=counters, after=counters)
def test_whatever_is_counted_it_is_a_number_and_no_more_than_the_most(before: Counters, after: Counters) -> None:
    spare = spare_cores(before, after)
    assert not math.isnan(spare)
    assert spare <= most_cores(after)
