from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.device import Availability, Choice, Pace, Speed
from distreal_edge.device.pace import Pause
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.dropout import Profile, Table

PER_MAC = 1e-3


@pytest.fixture(scope="module")
def make_pace(row_table: Callable[..., Table]) -> Callable[..., Pace]:
    """A pace over rows of 100, 200, 400 and 800 MACs: .1 to .8 core-seconds each, until second 100."""

    def make(
        *,
        macs: tuple[int, ...] = (100, 200, 400, 800),
        per_mac: float = PER_MAC,
        ceiling: float = 1.0,
        planned: int = 100,
        most: int = 100,
        images: int = 1,
        train_until_s: float = 100.0,
        peak_bytes: list[int] | None = None,
    ) -> Pace:
        table = row_table(list(macs))
        return Pace(
            table,
            Speed(table, seconds_of(table, per_mac)),
            ceiling=ceiling,
            planned=planned,
            most=most,
            images=images,
            train_until_s=train_until_s,
            peak_bytes=peak_bytes,
        )

    return make


def seconds_of(table: Table, per_mac: float) -> dict[int, float]:
    """Return seconds of one core per image with each row, when they are proportional to its MACs."""
    return {number: row.macs * per_mac for number, row in enumerate(table.rows)}


def chosen_row(pace: Pace, now_s: float, cores: float, memory_bytes: float | None = None) -> int:
    choice = pace.choose(now_s, Availability(cores, memory_bytes))
    assert isinstance(choice, Choice)
    return choice.row


def took(pace: Pace, choice: Choice, core_seconds: float) -> None:
    """Finish a mini-batch that took as long as was predicted, and so many seconds of one core."""
    pace.finished(choice, choice.predicted_s, core_seconds)


rising_macs = st.lists(st.integers(1, 10**6), min_size=1, max_size=12, unique=True).map(sorted)


@given(
    macs=rising_macs,
    per_mac=st.floats(1e-9, 1e-2),
    cores=st.floats(0.05, 8.0),
    left_s=st.floats(1e-3, 1e4),
    planned=st.integers(1, 500),
    images=st.integers(1, 64),
    ceiling=st.floats(0.01, 1.0),
    memory=st.one_of(st.none(), st.floats(0.0, 2e6)),
)
def test_the_row_is_the_best_of_those_that_fit(
    row_table: Callable[..., Table],
    macs: list[int],
    per_mac: float,
    cores: float,
    left_s: float,
    planned: int,
    images: int,
    ceiling: float,
    memory: float | None,
) -> None:
    table = row_table(macs)
    pace = Pace(
        table,
        Speed(table, seconds_of(table, per_mac)),
        ceiling=ceiling,
        planned=planned,
        most=planned,
        images=images,
        train_until_s=50.0 + left_s,
    )
    choice = pace.choose(50.0, Availability(cores, memory))
    assert isinstance(choice, Choice)

    threads = max(1, round(cores))
    left = (50.0 + left_s) - 50.0
    allowed = [each for number, each in enumerate(macs) if number == 0 or each <= ceiling * macs[-1] * (1 + 1e-9)]
    fitting = []
    for number, each in enumerate(allowed):
        seconds = each * images * per_mac / min(cores, threads)
        share = min(left / planned, left / 1.1)
        if math.isclose(seconds, share, rel_tol=1e-9):
            return  # on the very edge either is right
        if seconds <= share and (memory is None or each <= memory):
            fitting.append(number)
    assert choice.row == (fitting[-1] if fitting else 0)
    assert choice.threads == threads
    assert choice.predicted_s == pytest.approx(macs[choice.row] * images * per_mac / min(cores, threads))


def test_the_very_next_choice_is_cheaper_when_cores_go_away_and_dearer_when_they_come_back(
    make_pace: Callable[..., Pace],
) -> None:
    pace = make_pace(planned=200)
    rows = []
    for second, cores in enumerate((2.0, 0.5, 1.0, 2.0)):
        choice = pace.choose(second * 0.5, Availability(cores))
        assert isinstance(choice, Choice)
        rows.append(choice.row)
        took(pace, choice, (100, 200, 400, 800)[choice.row] * PER_MAC)
    assert rows == [3, 1, 2, 3]


@pytest.mark.parametrize(("ceiling", "widest"), [(1.0, 3), (0.99, 2), (0.5, 2), (0.3, 1), (0.001, 0)])
def test_no_row_is_over_the_ceiling_however_much_time_there_is(
    make_pace: Callable[..., Pace], ceiling: float, widest: int
) -> None:
    assert chosen_row(make_pace(ceiling=ceiling, planned=1), 0.0, 64.0) == widest


def test_it_is_the_cheapest_row_when_none_fits_into_its_share(make_pace: Callable[..., Pace]) -> None:
    assert chosen_row(make_pace(planned=100_000), 0.0, 1.0) == 0


@pytest.mark.parametrize(("memory", "row"), [(1e6, 3), (799.0, 2), (400.0, 2), (250.0, 1), (50.0, 0)])
def test_rows_that_need_more_memory_than_there_is_are_left_out(
    make_pace: Callable[..., Pace], memory: float, row: int
) -> None:
    assert chosen_row(make_pace(planned=1), 0.0, 1.0, memory) == row


def test_memory_can_be_given_for_another_batch_than_the_tables(make_pace: Callable[..., Pace]) -> None:
    assert chosen_row(make_pace(planned=1, peak_bytes=[10, 20, 900, 901]), 0.0, 1.0, 800.0) == 1


def test_it_ends_when_even_the_cheapest_row_cannot_finish(make_pace: Callable[..., Pace]) -> None:
    pace = make_pace()
    choice = pace.choose(0.0, Availability(1.0))
    assert isinstance(choice, Choice)
    took(pace, choice, 800 * PER_MAC)
    assert isinstance(pace.choose(99.88, Availability(1.0)), Choice)
    assert pace.choose(99.9, Availability(1.0)) is None
    assert pace.choose(100.0, Availability(64.0)) is None


def test_the_first_mini_batch_is_tried_however_long_it_will_take(make_pace: Callable[..., Pace]) -> None:
    pace = make_pace()
    choice = pace.choose(99.95, Availability(0.1))
    assert isinstance(choice, Choice)
    assert choice.row == 0
    took(pace, choice, 0.1)
    assert pace.choose(99.99, Availability(0.1)) is None


def test_it_waits_for_cores_to_come_back_while_the_round_could_still_go_on(make_pace: Callable[..., Pace]) -> None:
    pace = make_pace()
    choice = pace.choose(0.0, Availability(1.0))
    assert isinstance(choice, Choice)
    took(pace, choice, 0.8)
    for crumbs in (0.0, 0.001):
        pause = pace.choose(50.0, Availability(crumbs))
        assert isinstance(pause, Pause)
        assert 0.0 < pause.seconds <= 0.25
    assert isinstance(pace.choose(50.25, Availability(1.0)), Choice)
    assert pace.choose(99.95, Availability(0.0)) is None


def test_a_round_that_begins_without_any_core_waits_for_the_first(make_pace: Callable[..., Pace]) -> None:
    pace = make_pace()
    assert isinstance(pace.choose(0.0, Availability(0.0)), Pause)
    assert pace.choose(99.9, Availability(0.0)) == Pause(pytest.approx(0.1))
    assert pace.choose(100.0, Availability(0.0)) is None
    assert chosen_row(pace, 99.9, 0.01) == 0


def test_time_left_over_goes_into_more_mini_batches_up_to_the_most(make_pace: Callable[..., Pace]) -> None:
    pace, now_s, rows = make_pace(planned=3, most=8), 0.0, []
    while (choice := pace.choose(now_s, Availability(1.0))) is not None:
        assert isinstance(choice, Choice)
        rows.append(choice.row)
        took(pace, choice, 0.8)
        now_s += 0.8
    assert rows == [3] * 8


def test_what_is_left_at_the_end_goes_to_the_best_rows_that_still_fit(make_pace: Callable[..., Pace]) -> None:
    pace, now_s, rows = make_pace(planned=1, most=100, train_until_s=2.35), 0.0, []
    while (choice := pace.choose(now_s, Availability(1.0))) is not None:
        assert isinstance(choice, Choice)
        rows.append(choice.row)
        seconds = (0.1, 0.2, 0.4, 0.8)[choice.row]
        took(pace, choice, seconds)
        now_s += seconds
    assert rows == [3, 3, 2, 1, 0]
    assert now_s <= 2.35


def test_a_weak_board_trains_all_of_its_mini_batches_on_cheap_rows(make_pace: Callable[..., Pace]) -> None:
    # 0.2 cores for 100 s are 20 core-seconds: 200 of the cheapest row, 25 of the dearest.
    pace, now_s, rows = make_pace(planned=150, most=150), 0.0, []
    while (choice := pace.choose(now_s, Availability(0.2))) is not None:
        assert isinstance(choice, Choice)
        rows.append(choice.row)
        core_seconds = (0.1, 0.2, 0.4, 0.8)[choice.row]
        took(pace, choice, core_seconds)
        now_s += core_seconds / 0.2
    assert len(rows) == 150
    assert now_s <= 100.0
    assert set(rows) == {0, 1}


def test_cores_beyond_the_threads_are_not_counted_on(make_pace: Callable[..., Pace]) -> None:
    choice = make_pace(planned=1).choose(0.0, Availability(2.4))
    assert choice == Choice(3, 2, pytest.approx(0.4))


@pytest.mark.parametrize("wrong", [0.1, 10.0])
def test_predictions_come_right_when_the_first_measurement_was_ten_times_off(
    row_table: Callable[..., Table], wrong: float
) -> None:
    table = row_table([100, 200, 400, 800])
    speed = Speed(table, seconds_of(table, PER_MAC * wrong))
    for _ in range(3):
        speed.observe(1, 4, 2, 200 * 4 * PER_MAC, 1.0)
    for row, macs in enumerate((100, 200, 400, 800)):
        assert speed.predict(row, 4, 2.0, 2) == pytest.approx(macs * 4 * PER_MAC / 2.0)


def test_a_row_is_predicted_by_its_own_average_once_it_has_run(row_table: Callable[..., Table]) -> None:
    table = row_table([100, 800])
    speed = Speed(table, seconds_of(table, PER_MAC))
    for _ in range(30):  # the narrow row is worse than its MACs say, as small kernels are
        speed.observe(0, 1, 1, 300 * PER_MAC, 0.3)
        speed.observe(1, 1, 1, 800 * PER_MAC, 0.8)
    assert speed.predict(0, 1, 1.0, 1) == pytest.approx(0.3)
    assert speed.predict(1, 1, 1.0, 1) == pytest.approx(0.8)


def test_one_slow_mini_batch_does_not_shut_its_row_out_for_good(make_pace: Callable[..., Pace]) -> None:
    pace = make_pace(planned=100_000, most=100_000, train_until_s=100_000.0)
    rows, now_s = [], 0.0
    for number in range(200):
        choice = pace.choose(now_s, Availability(1.0))
        assert isinstance(choice, Choice)
        rows.append(choice.row)
        took(pace, choice, (0.1, 0.2, 0.4, 0.8)[choice.row] * (20.0 if number == 0 else 1.0))
        now_s += 1.0
    assert rows[0] == 3
    assert rows[1] < 3
    assert rows[100:] == [3] * 100


def test_no_cores_take_for_ever(row_table: Callable[..., Table]) -> None:
    assert Speed(row_table([100]), {0: 1.0}).predict(0, 1, 0.0, 1) == math.inf


# -- what was measured before ------------------------------------------------------------------------------------------


def test_rows_between_two_that_were_measured_lie_on_the_line_and_others_go_with_their_macs(
    row_table: Callable[..., Table],
) -> None:
    speed = Speed(row_table([100, 200, 400, 800, 1600]), {1: 0.3, 3: 0.9})
    assert [speed.predict(row, 10, 1.0, 1) for row in range(5)] == pytest.approx([1.5, 3.0, 5.0, 9.0, 18.0])


def test_with_a_profile_each_row_takes_its_own_seconds_with_as_many_threads_as_end_first(
    row_table: Callable[..., Table], profile_of: Callable[..., Profile]
) -> None:
    table = row_table([100, 800], batch=4)
    # The narrow row gains nothing from a second thread, the wide one does; three hold each other up.
    profiled = msgspec.structs.replace(table, profile=profile_of(table, {1: [0.2, 1.0], 2: [0.2, 0.6], 3: [0.3, 0.7]}))
    speed = Speed(profiled)
    assert [speed.fastest(row, 4, 3.0)[0] for row in (0, 1)] == [1, 2]
    assert [speed.fastest(row, 4, 3.0)[1] for row in (0, 1)] == pytest.approx([0.2, 0.6])
    assert speed.predict(1, 8, 2.0, 2) == pytest.approx(1.2)
    assert speed.predict(1, 4, 0.5, 1) == pytest.approx(2.0)
    assert speed.fastest(1, 4, 1.4)[0] == 1
    for _ in range(40):  # throttled to half of its speed since
        speed.observe(0, 4, 1, 0.4, 0.4)
    assert speed.predict(1, 4, 3.0, 2) == pytest.approx(1.2)


def test_a_speed_needs_something_measured(row_table: Callable[..., Table]) -> None:
    with pytest.raises(ConfigError, match="nobody has measured"):
        Speed(row_table([100]))
    with pytest.raises(ConfigError, match="nobody has measured"):
        Speed(row_table([100]), {})


def test_a_part_of_an_abundance_is_saved_and_scarcity_is_heeded_at_once(make_pace: Callable[..., Pace]) -> None:
    rows = {}
    for usual in (1.0, 4.0):
        pace = make_pace(planned=250, most=250)
        for number in range(100):
            now_s = 0.4 * number
            choice = pace.choose(now_s, Availability(usual))
            assert isinstance(choice, Choice)
            pace.finished(choice, (0.1, 0.2, 0.4, 0.8)[choice.row] / usual, (0.1, 0.2, 0.4, 0.8)[choice.row])
        rows[usual] = [chosen_row(pace, 40.0, cores) for cores in (0.25, 0.5, 1.0, 2.0, 4.0)]
    # 0.4 s for each: in core-seconds .1, .2, .4, .8 and 1.6; with 2 and 4 cores, where there was 1, .49 and .61.
    assert rows == {1.0: [0, 1, 2, 2, 2], 4.0: [0, 1, 2, 3, 3]}


def test_cores_that_vanish_within_mini_batches_are_not_counted_on(make_pace: Callable[..., Pace]) -> None:
    rows = []
    for caught in (False, True):
        pace, now_s = make_pace(planned=100, most=100, train_until_s=85.0), 0.0
        for number in range(40):
            choice = pace.choose(now_s, Availability(1.0))
            assert isinstance(choice, Choice)
            # Every other one is caught by an owner's job, for ten times as long as it needs.
            seconds = choice.predicted_s * (10.0 if caught and number % 2 else 1.0)
            pace.finished(choice, seconds, (0.1, 0.2, 0.4, 0.8)[choice.row])
            now_s += 0.85
        rows.append(choice.row)
    assert rows[1] < rows[0] == 3
