from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from distreal_edge.aggregator import AggregatorRounds, Close, Finish, Open, RoundSettings
from distreal_edge.aggregator.rounds import MOST_DEVICES, RETURN_S, SETTLE_S, chosen_line, staleness
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


def of(**changed: Any) -> RoundSettings:
    known: dict[str, Any] = {
        "number": 3, "seconds": 10.0, "upload_seconds": 2.0, "least_devices": 1, "devices_per_round": None, "seed": 0,
    }  # fmt: skip
    return RoundSettings(**{**known, **changed})


@pytest.fixture
def begun() -> Callable[..., AggregatorRounds]:
    """Make rounds that have been connected since time 0, with devices that are there, at time 100."""

    def begin(*devices: str, **changed: Any) -> AggregatorRounds:
        rounds = AggregatorRounds(of(**changed))
        rounds.broker_back(0.0)
        for device in devices:
            rounds.device_seen(device, 50)
        return rounds

    return begin


def opened(rounds: AggregatorRounds, now: float) -> Open:
    (action,) = rounds.tick(now)
    assert isinstance(action, Open)
    return action


def close(rounds: AggregatorRounds, now: float) -> None:
    number = rounds.open.number  # type: ignore[union-attr]
    (action,) = rounds.tick(now)
    assert isinstance(action, Close)
    assert action.number == number
    assert action.why
    assert rounds.tick(now) == []
    rounds.closed()


def test_no_round_opens_before_enough_devices_are_there(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("a", "b", least_devices=3)
    assert rounds.tick(100.0) == []
    rounds.device_seen("c", 1)
    assert opened(rounds, 101.0) == Open(1, ("a", "b", "c"), 101.0, 109.0, 111.0, measure_only=False)


def test_a_round_closes_when_all_have_answered(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("a", "b")
    opened(rounds, 100.0)
    rounds.update_stored("a")
    assert rounds.tick(101.0) == []
    rounds.update_stored("b")
    close(rounds, 101.0)
    assert rounds.done == 1
    assert opened(rounds, 102.0).number == 2


def test_a_round_that_could_not_close_is_due_again_and_still_takes_updates(
    begun: Callable[..., AggregatorRounds],
) -> None:
    rounds = begun("a", "b")
    opened(rounds, 100.0)
    rounds.update_stored("a")
    (first,) = rounds.tick(110.0)
    rounds.not_closed()
    rounds.update_stored("b")
    (again,) = rounds.tick(112.0)
    assert isinstance(first, Close)
    assert (again, rounds.done) == (Close(1, "all have answered"), 0)
    rounds.closed()
    assert rounds.done == 1


@pytest.mark.parametrize("answered", [(), ("a",)])
def test_a_round_closes_at_its_deadline_and_not_before(
    begun: Callable[..., AggregatorRounds], answered: tuple[str, ...]
) -> None:
    rounds = begun("a", "b")
    opened(rounds, 100.0)
    for device in answered:
        rounds.update_stored(device)
    assert rounds.tick(109.999) == []
    close(rounds, 110.0)


@pytest.mark.parametrize(("quorum", "enough"), [(1.0, 5), (0.81, 5), (0.8, 4), (0.6, 3), (0.5, 3), (0.01, 1)])
def test_a_round_closes_once_the_quorum_has_answered(
    begun: Callable[..., AggregatorRounds], quorum: float, enough: int
) -> None:
    rounds = begun(*"abcde", quorum=quorum)
    opened(rounds, 100.0)
    for device in "abcde"[: enough - 1]:
        rounds.update_stored(device)
    assert rounds.tick(101.0) == []
    rounds.update_stored("e")
    close(rounds, 101.0)


@pytest.mark.parametrize(
    ("wanted", "factor", "present", "selected", "enough"),
    [(10, 1.1, 30, 11, 10), (10, 1.3, 30, 13, 10), (10, 1.3, 12, 12, 10), (10, 1.3, 7, 7, 7), (1, 1.01, 5, 2, 1)],
)
def test_more_devices_are_selected_than_are_waited_for(
    begun: Callable[..., AggregatorRounds], wanted: int, factor: float, present: int, selected: int, enough: int
) -> None:
    rounds = begun(*(f"d{number}" for number in range(present)), devices_per_round=wanted, over_selection=factor)
    chosen = opened(rounds, 100.0).selected
    assert len(chosen) == selected
    for device in chosen[: enough - 1]:
        rounds.update_stored(device)
    assert rounds.tick(101.0) == []
    rounds.update_stored(chosen[-1])
    close(rounds, 101.0)


def test_a_clock_that_is_set_back_does_not_make_a_round_longer(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("a", "b")
    opened(rounds, 10_000.0)
    assert rounds.tick(10_004.0) == []
    assert rounds.tick(5_000.0) == []  # 4 s of the round are gone
    assert rounds.tick(5_005.9) == []
    close(rounds, 5_006.0)
    # The next one has the clock's own times again.
    second = opened(rounds, 5_007.0)
    assert (second.opened_s, second.deadline_s) == (5_007.0, 5_017.0)
    assert rounds.tick(5_016.9) == []
    close(rounds, 5_017.0)


def test_the_reason_for_closing_says_which_of_them_it_was(begun: Callable[..., AggregatorRounds]) -> None:
    whys = []
    for answered, now in (("ab", 101.0), ("a", 101.0), ("", 110.0)):
        rounds = begun("a", "b", quorum=0.5 if answered == "a" else 1.0)
        opened(rounds, 100.0)
        for device in answered:
            rounds.update_stored(device)
        (action,) = rounds.tick(now)
        assert isinstance(action, Close)
        whys.append(action.why)
    assert whys == ["all have answered", "1 of 2 answered, at least 1 needed", "its deadline has passed"]


@pytest.mark.parametrize(
    ("selected", "present", "changed", "line"),
    [
        (4, 4, {}, "all 4 that are here"),
        (1, 1, {}, "the only one here"),
        (3, 9, {"devices_per_round": 3}, "3 at random of the 9 that are here"),
        (5, 9, {"devices_per_round": 4}, "5 at random of the 9 that are here, 1 to spare"),
    ],
)
def test_why_these_devices_take_part_is_said(selected: int, present: int, changed: dict[str, Any], line: str) -> None:
    assert chosen_line(of(**changed), selected=selected, present=present) == line


@pytest.mark.parametrize(("of_round", "done", "stale"), [(3, 3, 1), (2, 3, 2), (1, 7, 7), (None, 5, 1), (9, 3, 1)])
def test_a_late_update_is_so_many_rounds_behind(of_round: int | None, done: int, stale: int) -> None:
    assert staleness(of_round, done=done) == stale


def test_a_device_that_went_away_is_waited_for_until_the_deadline(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("a", "b")
    opened(rounds, 100.0)
    rounds.update_stored("a")
    rounds.device_gone("b")
    assert rounds.tick(109.0) == []
    rounds.update_stored("b")
    close(rounds, 109.0)
    assert opened(rounds, 110.0).selected == ("a",)


def test_a_device_that_comes_during_a_round_takes_part_in_the_next(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("b")
    assert opened(rounds, 100.0).selected == ("b",)
    rounds.device_seen("a", 1)
    rounds.update_stored("b")
    close(rounds, 101.0)
    assert opened(rounds, 102.0).selected == ("a", "b")


def test_after_the_last_round_everybody_is_told_until_somebody_has_heard(
    begun: Callable[..., AggregatorRounds],
) -> None:
    rounds = begun("a", number=1)
    opened(rounds, 100.0)
    close(rounds, 110.0)
    assert rounds.tick(111.0) == [Finish()]
    assert rounds.tick(112.0) == [Finish()]
    rounds.finished()
    assert rounds.tick(113.0) == []


def test_a_closing_measurement_is_a_round_of_its_own(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("a", number=2, closing_measurement=True)
    kinds = []
    for now in (100.0, 200.0, 300.0):
        kinds.append(opened(rounds, now).measure_only)
        close(rounds, now + 10.0)
    assert kinds == [False, False, True]
    assert rounds.tick(400.0) == [Finish()]


def test_selection_is_reproducible_from_the_seed_and_new_in_every_round(
    begun: Callable[..., AggregatorRounds],
) -> None:
    names = [f"pi-{number}" for number in range(20)]

    def selections(order: list[str], seed: int) -> list[tuple[str, ...]]:
        rounds = begun(*order, number=5, devices_per_round=4, seed=seed)
        made = []
        for number in range(5):
            made.append(opened(rounds, 100.0 * number + 100.0).selected)
            close(rounds, 100.0 * number + 110.0)
        return made

    one = selections(names, 3)
    assert one == selections(names[::-1], 3)  # whoever came first
    assert one != selections(names, 4)
    assert len(set(one)) == 5
    assert all(len(set(each)) == 4 and set(each) <= set(names) for each in one)


def test_selection_is_uniform(begun: Callable[..., AggregatorRounds]) -> None:
    names = [f"pi-{number}" for number in range(10)]
    counts: Counter[str] = Counter()
    for seed in range(400):
        counts.update(opened(begun(*names, devices_per_round=3, seed=seed), 100.0).selected)
    # Binomial(400, 0.3): mean 120, standard deviation 9.2; five of them make a false alarm a matter of 1 in 10^5.
    assert all(abs(counts[name] - 120) < 46 for name in names)


@pytest.mark.parametrize("count", [3, 4, 10])
def test_all_take_part_when_there_are_not_more_than_wanted(begun: Callable[..., AggregatorRounds], count: int) -> None:
    assert opened(begun("c", "a", "b", devices_per_round=count), 100.0).selected == ("a", "b", "c")


def test_there_are_never_more_devices_than_a_manifest_can_name(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun(*(f"d{number}" for number in range(MOST_DEVICES)))
    assert not rounds.device_seen("one-more", 1)
    assert rounds.device_seen("d5", 7)
    assert rounds.present["d5"] == 7
    assert len(opened(rounds, 100.0).selected) == MOST_DEVICES


# -- the broker comes and goes -----------------------------------------------------------------------------------------


def test_nothing_opens_or_finishes_without_a_broker() -> None:
    for rounds in (AggregatorRounds(of()), AggregatorRounds(of(), done=3)):
        rounds.device_seen("a", 1)
        assert rounds.tick(1e6) == []


def test_devices_have_time_to_be_seen_after_the_broker_is_back() -> None:
    rounds = AggregatorRounds(of())
    rounds.broker_back(100.0)
    rounds.device_seen("a", 1)
    assert rounds.tick(100.0 + SETTLE_S / 2) == []
    rounds.device_seen("b", 1)
    assert opened(rounds, 100.0 + SETTLE_S).selected == ("a", "b")


def test_who_is_there_is_forgotten_with_the_connection(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("a")
    rounds.broker_gone()
    rounds.broker_back(100.0)
    assert rounds.tick(200.0) == []


def test_a_round_goes_on_while_the_broker_is_away(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("a", "b")
    opened(rounds, 100.0)
    rounds.broker_gone()
    rounds.broker_back(105.0)
    for device in ("a", "b"):
        rounds.update_stored(device)
    close(rounds, 106.0)


@pytest.mark.parametrize(("upload_s", "expected_s"), [(2.0, RETURN_S), (20.0, 20.0)])
def test_devices_get_their_upload_time_when_the_broker_was_away_at_the_deadline(
    begun: Callable[..., AggregatorRounds], upload_s: float, expected_s: float
) -> None:
    rounds = begun("a", seconds=60.0, upload_seconds=upload_s)
    opened(rounds, 100.0)
    rounds.broker_gone()
    assert rounds.tick(161.0) == []
    rounds.broker_back(162.0)
    assert rounds.tick(161.9 + expected_s) == []
    close(rounds, 162.0 + expected_s)


def test_a_first_round_shorter_than_the_time_to_come_back_closes_at_its_deadline() -> None:
    rounds = AggregatorRounds(of(seconds=RETURN_S / 3))
    rounds.broker_back(100.0)
    rounds.device_seen("a", 1)
    deadline_s = opened(rounds, 100.0 + SETTLE_S).deadline_s
    assert rounds.tick(deadline_s - 0.1) == []
    close(rounds, deadline_s)


def test_a_round_waits_for_the_broker_no_longer_than_another_round(begun: Callable[..., AggregatorRounds]) -> None:
    rounds = begun("a")
    opened(rounds, 100.0)
    rounds.broker_gone()
    assert rounds.tick(119.9) == []
    close(rounds, 120.0)
    assert rounds.tick(1e6) == []


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_a_restart_continues_the_very_round() -> None:
    reopened = Open(2, ("a", "b"), 100.0, 108.0, 110.0, measure_only=False)
    rounds = AggregatorRounds(of(), done=1, reopened=reopened, answered=["a"])
    rounds.broker_back(103.0)
    assert rounds.tick(103.0) == []
    rounds.update_stored("b")
    close(rounds, 104.0)
    assert rounds.done == 2


@pytest.mark.parametrize("back_s", [1.0, 3600.0, 1e9])
def test_a_restart_that_wakes_up_before_its_round_was_opened_does_not_make_the_round_longer(back_s: float) -> None:
    reopened = Open(2, ("a", "b"), 2e9, 2e9 + 8.0, 2e9 + 10.0, measure_only=False)
    rounds = AggregatorRounds(of(), done=1, reopened=reopened, answered=["a"])
    woken_s = 2e9 - back_s
    rounds.broker_back(woken_s)
    assert rounds.tick(woken_s + 9.9) == []
    close(rounds, woken_s + 10.1)
    rounds.device_seen("a", 50)
    assert opened(rounds, woken_s + 12.0).deadline_s == woken_s + 22.0


def test_a_restart_after_the_deadline_still_takes_the_updates_that_devices_kept() -> None:
    reopened = Open(2, ("a", "b"), 100.0, 150.0, 160.0, measure_only=False)
    rounds = AggregatorRounds(of(seconds=60.0), done=1, reopened=reopened)
    assert rounds.tick(5000.0) == []
    rounds.broker_back(5001.0)
    assert rounds.tick(5000.9 + RETURN_S) == []
    close(rounds, 5001.0 + RETURN_S)


def test_a_restart_after_the_last_round_only_finishes() -> None:
    rounds = AggregatorRounds(of(number=2), done=2)
    rounds.broker_back(0.0)
    assert rounds.tick(0.0) == [Finish()]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"upload_seconds": 10.0}, "upload_seconds"),
        ({"devices_per_round": 0}, "devices_per_round"),
        ({"quorum": 0.0}, "quorum"),
        ({"quorum": 1.1}, "quorum"),
        ({"over_selection": 0.9}, "over_selection"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        of(**changed)


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens in whatever order: rounds are numbered one after the other, and each ends in bounded time."""

    DEVICES = ("a", "b", "c", "d")

    @initialize(
        least=st.integers(1, 3),
        count=st.none() | st.integers(1, 3),
        number=st.integers(1, 3),
        closing=st.booleans(),
        quorum=st.sampled_from([0.3, 0.5, 1.0]),
        more=st.sampled_from([1.0, 1.5]),
    )
    def begin(self, least: int, count: int | None, number: int, closing: bool, quorum: float, more: float) -> None:
        self.settings = of(
            number=number, least_devices=least, devices_per_round=count, closing_measurement=closing, quorum=quorum,
            over_selection=more,
        )  # fmt: skip
        self.rounds = AggregatorRounds(self.settings)
        self.now = 1000.0
        self.began_s: float | None = None
        self.history: list[int] = []
        self.finished = False

    @rule(device=st.sampled_from(DEVICES))
    def comes(self, device: str) -> None:
        self.rounds.device_seen(device, 5)

    @rule(device=st.sampled_from(DEVICES))
    def goes(self, device: str) -> None:
        self.rounds.device_gone(device)

    @rule(device=st.sampled_from(DEVICES))
    def answers(self, device: str) -> None:
        if self.rounds.open is not None and device in self.rounds.open.selected:
            self.rounds.update_stored(device)

    @rule()
    def broker_returns(self) -> None:
        if not self.rounds.connected:
            self.rounds.broker_back(self.now)

    @rule()
    def broker_goes(self) -> None:
        self.rounds.broker_gone()

    @rule()
    def restarts(self) -> None:
        if not self.finished:
            self.rounds = AggregatorRounds(
                self.settings, done=self.rounds.done, reopened=self.rounds.open, answered=self.rounds.answered
            )
            self.began_s = None

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 3.0, 9.9, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.began_s = self.now if self.began_s is None else self.began_s
        present = set(self.rounds.present)
        for action in self.rounds.tick(self.now):
            match action:
                case Open():
                    assert self.rounds.connected
                    assert len(present) >= self.settings.least_devices
                    assert set(action.selected) <= present
                    count = self.settings.devices_per_round
                    wanted = 99 if count is None else math.ceil(count * self.settings.over_selection)
                    assert len(action.selected) == min(len(present), wanted)
                    assert action.deadline_s == self.now + 10.0
                    assert action.measure_only == (action.number > self.settings.number)
                case Close():
                    round_ = self.rounds.open
                    assert round_ is not None
                    needed = min(len(round_.selected), self.settings.devices_per_round or 99)
                    enough = len(self.rounds.answered) >= self.settings.quorum * needed
                    assert enough or self.now >= round_.deadline_s
                    self.history.append(action.number)
                    self.rounds.closed()
                case Finish():
                    assert self.history == list(range(1, self.settings.last + 1))
                    self.rounds.finished()
                    self.finished = True

    @invariant()
    def rounds_are_closed_one_after_the_other(self) -> None:
        assert self.history == list(range(1, len(self.history) + 1))
        assert self.rounds.done == len(self.history)

    @invariant()
    def nothing_stays_open_for_ever(self) -> None:
        if self.rounds.open is not None and self.began_s is not None:
            bound_s = max(self.rounds.open.deadline_s, self.began_s) + self.settings.seconds
            if self.now >= bound_s:
                assert self.rounds.tick(self.now) != []
                self.history.append(self.rounds.open.number)
                self.rounds.closed()


AnyHistory.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase
