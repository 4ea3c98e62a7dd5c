"""Each strategy held to what defines it, over a network of two convolutions with 10 and 20 filters."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.config import CeilingStep, NetworkChoice, TableChoice
from distreal_edge.device import Availability, Choice, Speed
from distreal_edge.dropout import filter_counts
from distreal_edge.network import Network
from distreal_edge.simulate import RIVALS, world_of
from distreal_edge.simulate.federation import lesson_of
from distreal_edge.simulate.rivals.pacing import as_it_fits, one_row_per_round, widest_row, width_drawn_per_step
from distreal_edge.simulate.training import strategy_network, strategy_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from distreal_edge.device.pace import Pacing
    from distreal_edge.dropout import Table
    from distreal_edge.simulate import Scenario
    from distreal_edge.simulate.rivals.pacing import PaceOf

ONE = {"number": 1, "devices_per_round": 10}
UNEVEN = {"kind": "dirichlet", "alpha": 2.0, "smallest": 8}
PER_MAC = 1e-6


def pace_over(table: Table, make: PaceOf, *, planned: int = 100, most: int = 100, ceiling: float = 1.0) -> Pacing:
    """A pace whose full network just fits its share of 100 seconds on one core."""
    full_s = table.rows[-1].macs * PER_MAC
    speed = Speed(table, {number: row.macs * PER_MAC for number, row in enumerate(table.rows)})
    until_s = 1.0001 * planned * full_s
    arguments = {"ceiling": ceiling, "planned": planned, "most": most, "images": 1, "train_until_s": until_s}
    return make(np.random.default_rng(0))(table, speed, **arguments, peak_bytes=None)


def rows_chosen(pace: Pacing, table: Table, cores: Sequence[float]) -> list[int]:
    """Choose for one mini-batch after the other, each taking just what its row says, with these cores free."""
    now_s, rows = 0.0, []
    for free in cores:
        choice = pace.choose(now_s, Availability(free, None))
        assert isinstance(choice, Choice)
        core_seconds = table.rows[choice.row].macs * PER_MAC
        pace.finished(choice, core_seconds / free, core_seconds)
        now_s += core_seconds / free
        rows.append(choice.row)
    return rows


def mean_by_hand(
    network: Network, sent: Sequence[Any], weight_of: Callable[[Any, str], NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """The old weights and the weighted mean of the changes, written out element by element in float64."""
    after = {}
    for name in network.plan.parameters:
        weights = np.array([weight_of(each, name) for each in sent])
        changes = np.array([each.changes[name] for each in sent])
        total = weights.sum(axis=0)
        change = (weights * changes).sum(axis=0) / np.where(total > 0.0, total, 1.0)
        after[name] = network.weights[name].astype(np.float64) + change
    return after


def assert_weights(found: Network, expected: dict[str, NDArray[np.float64]]) -> None:
    for name, tensor in expected.items():
        np.testing.assert_allclose(found.weights[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture
def one_round(spy_on: Callable[..., Any], sent_by: Callable[..., Any]) -> Callable[..., Any]:
    """Run one round; return the federation, the network before it, what devices sent, and the trainings."""

    def run(scenario: Scenario, rival: str) -> tuple[Any, Network, list[Any], list[Any]]:
        before = strategy_network(scenario, rival)
        federation, _, seen = spy_on(scenario, rival)
        return federation, before, [sent_by(before, trained) for _, trained in seen], seen

    return run


# -- what is the same for all ------------------------------------------------------------------------------------------


def test_all_strategies_train_with_the_same_batches_rates_and_momentum(scenario_of: Callable[..., Scenario]) -> None:
    world = world_of(scenario_of(training={"final_lr": 0.001}))
    lessons = [lesson_of(world, rival) for rival in RIVALS.values()]
    shared = {
        (lesson.batch, lesson.lr, lesson.final_lr, lesson.momentum, lesson.weight_decay, lesson.epochs, lesson.encoding)
        for lesson in lessons
    }
    assert len(shared) == 1


def test_all_strategies_begin_with_the_same_weights_but_for_the_small_network(
    scenario_of: Callable[..., Scenario],
) -> None:
    scenario = scenario_of()
    starts = {strategy_network(scenario, rival).to_bytes() for rival in RIVALS if not rival.startswith("small")}
    assert starts == {world_of(scenario).network.to_bytes()}


def test_the_same_devices_are_selected_whatever_the_strategy(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds={"number": 3, "devices_per_round": 3}, availability={"shares": (0.5, 0.1)})
    chosen = set()
    for rival in ("full-partial", "fjord", "full-unlimited"):
        _, _, seen = spy_on(scenario, rival)
        chosen.add(tuple((task.manifest.number, task.device) for task, _ in seen))
    assert len(chosen) == 1


@pytest.mark.parametrize("rival", RIVALS)
def test_every_strategy_has_a_name_a_title_and_a_table_that_ends_with_the_full_network(
    scenario_of: Callable[..., Scenario], rival: str
) -> None:
    table = strategy_table(scenario_of(), rival)
    assert RIVALS[rival].name == rival
    assert RIVALS[rival].title
    assert not any(table.rows[-1].vector)


@pytest.mark.parametrize("make", [as_it_fits, widest_row, one_row_per_round, width_drawn_per_step])
def test_no_pace_ends_a_round_because_no_core_is_free_now(scenario_of: Callable[..., Scenario], make: PaceOf) -> None:
    table = strategy_table(scenario_of(), "fjord")
    pace = pace_over(table, make)
    waits = pace.choose(0.0, Availability(0.0, None))
    assert waits is not None
    assert not isinstance(waits, Choice)
    assert rows_chosen(pace, table, [1.0])


@pytest.mark.parametrize("make", [one_row_per_round, width_drawn_per_step])
def test_rows_that_do_not_fit_into_memory_are_not_chosen(scenario_of: Callable[..., Scenario], make: PaceOf) -> None:
    table = strategy_table(scenario_of(), "fjord")
    pace = pace_over(table, make)
    for _ in range(50):
        choice = pace.choose(0.0, Availability(1.0, table.rows[2].peak_bytes))
        assert isinstance(choice, Choice)
        assert choice.row <= 2


@pytest.mark.parametrize("rival", ["ours", "heterofl", "full-partial"])
def test_a_device_with_hardly_a_core_sends_nothing_that_counts_and_holds_up_nobody(
    scenario_of: Callable[..., Scenario], one_round: Callable[..., Any], rival: str
) -> None:
    scenario = scenario_of(rounds=ONE, devices={"number": 2}, availability={"shares": (1.0, 1e-7)})
    federation, before, (strong, weak), seen = one_round(scenario, rival)
    assert (weak.images, weak.mini_batches) == (0, 0)
    assert seen[1][1].end_s == pytest.approx(54.0)
    expected = {name: before.weights[name] + strong.changes[name] for name in strong.changes}
    assert_weights(federation.network, expected)


# -- full networks -----------------------------------------------------------------------------------------------------


def test_with_unlimited_resources_every_device_finishes_everything(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds=ONE, data=UNEVEN, availability={"shares": (0.0, 0.1)})
    federation, (record,), seen = spy_on(scenario, "full-unlimited")
    assert (record.answered, record.late) == (10, 0)
    for task, trained in seen:
        assert trained.header.mini_batches == federation.world.planned(task.device)


@pytest.mark.parametrize("need", [0.3, 1.4, 3.6])
def test_unlimited_devices_have_the_cores_they_need_however_fast_one_is(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any], need: float
) -> None:
    rounds = {"number": 1, "devices_per_round": 2}
    just = world_of(scenario_of(rounds=rounds)).macs_per_s(0)
    scenario = scenario_of(rounds=rounds, devices={"number": 10, "macs_per_s": just / need})
    assert world_of(scenario).need_cores(0) == pytest.approx(need)
    _, (record,), _ = spy_on(scenario, "full-unlimited")
    assert (record.answered, record.mini_batches) == (2, 8)


def test_who_does_not_finish_in_time_is_left_out_of_the_average(
    scenario_of: Callable[..., Scenario], one_round: Callable[..., Any], spy_on: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds=ONE, data=UNEVEN, availability={"shares": (1.0, 0.6)})
    federation, before, sent, seen = one_round(scenario, "full-late-dropped")
    done = [each for each, (task, _) in zip(sent, seen, strict=True) if task.device % 2 == 0]
    assert all(each.mini_batches > 0 for each in sent)
    assert len({each.images for each in done}) > 1
    expected = mean_by_hand(before, done, lambda each, name: np.full(each.changes[name].shape, float(each.images)))
    assert_weights(federation.network, expected)


def test_those_left_out_are_counted_as_late(
    scenario_of: Callable[..., Scenario], records_of: Callable[..., Any]
) -> None:
    (record,) = records_of(scenario_of(rounds=ONE, availability={"shares": (1.0, 0.6)}), "full-late-dropped")
    assert (record.selected, record.answered, record.late) == (10, 5, 5)
    assert record.closed_s == pytest.approx(60.0)


def test_only_devices_that_can_train_the_full_network_at_the_opening_are_selected(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    availability = {"kind": "redraw", "least": 0.5, "most": 1.5, "every_s": 20.0}
    scenario = scenario_of(rounds={"number": 4}, availability=availability)
    federation, records, seen = spy_on(scenario, "full-capable")
    assert len(records) == 4
    for task, _ in seen:
        assert federation.world.trace(task.device).at(task.opened_s) >= 1.0
    able = {
        record.opened_s: sum(federation.world.trace(device).at(record.opened_s) >= 1.0 for device in range(10))
        for record in records
    }
    assert [record.selected for record in records] == [min(5, able[record.opened_s]) for record in records]


def test_partial_work_counts_by_the_images_that_were_trained(
    scenario_of: Callable[..., Scenario], one_round: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds=ONE, availability={"shares": (1.0, 0.6)})
    federation, before, sent, _ = one_round(scenario, "full-partial")
    assert [each.mini_batches for each in sent] == [4, 2] * 5
    expected = mean_by_hand(before, sent, lambda each, name: np.full(each.changes[name].shape, float(each.images)))
    assert_weights(federation.network, expected)


# -- small networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.15, 0.3, 0.7])
def test_a_small_network_costs_no_more_than_the_weakest_can_do(
    scenario_of: Callable[..., Scenario], least: float
) -> None:
    scenario = scenario_of(availability={"shares": (1.0, least)}, devices={"overhead": 0.05})
    world = world_of(scenario)
    small = strategy_network(scenario, "small")
    macs = small.cost([0.0] * len(small.groups)).macs
    # Of `least` cores, where 1.05 times the full MACs just fit on one.
    assert macs + 0.05 * world.full_macs <= least * 1.05 * world.full_macs
    assert macs > 0.7 * (least * 1.05 - 0.05) * world.full_macs


def test_how_small_follows_the_cores_that_are_needed_when_a_core_has_a_speed(
    scenario_of: Callable[..., Scenario],
) -> None:
    just = world_of(scenario_of()).macs_per_s(0)
    slow = scenario_of(availability={"shares": (2.0,)}, devices={"number": 10, "macs_per_s": just / 8, "overhead": 0.0})
    # That speed made up for an overhead of 4 percent, which these devices do not have.
    assert world_of(slow).small_share == pytest.approx(2 / 8 * 1.04)


def test_the_weakest_device_finishes_a_small_network_and_stops_there(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    _, (record,), seen = spy_on(scenario_of(rounds=ONE, availability={"shares": (1.0, 0.3)}), "small")
    assert [trained.header.mini_batches for _, trained in seen] == [4] * 10
    assert record.why == "all have answered"


def test_a_filled_small_network_goes_on_for_as_long_as_there_is_time(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    _, _, seen = spy_on(scenario_of(rounds=ONE, availability={"shares": (1.0, 0.5)}), "small-filled")
    strong, weak = seen[0][1], seen[1][1]
    assert strong.header.mini_batches == pytest.approx(2 * weak.header.mini_batches, abs=2)
    assert weak.header.mini_batches > 4
    step_s = strong.busy_s / strong.header.mini_batches
    assert 54.0 - strong.end_s < step_s


def test_a_small_network_of_the_zoo_begins_with_weights_of_its_own_size(scenario_of: Callable[..., Scenario]) -> None:
    choice = NetworkChoice(zoo="resnet8", classes=3, in_channels=1, image_size=6, seed=4)
    small = strategy_network(scenario_of(network=choice), "small")
    assert small.to_bytes() == Network.initialise(small.plan, 4).to_bytes()
    # PyTorch draws a convolution's weights within the inverse root of what each filter reads.
    weight = small.weights["layer1.0.conv1.weight"]
    assert np.abs(weight).max() == pytest.approx(1 / np.sqrt(np.prod(weight.shape[1:])), rel=0.2)


# -- HeteroFL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rival", "widths"), [("heterofl", (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)), ("fjord", (0.2, 0.4, 0.6, 0.8, 1))]
)
def test_widths_are_the_papers_and_the_first_filters_of_every_layer(
    scenario_of: Callable[..., Scenario], rival: str, widths: tuple[float, ...]
) -> None:
    table = strategy_table(scenario_of(), rival)
    assert table.draw == "ordered"
    counts = [filter_counts(row.vector, table.sizes) for row in table.rows]
    assert counts == [tuple(max(1, round(width * size)) for size in (10, 20)) for width in widths]


def test_heterofl_averages_each_element_plainly_over_the_devices_whose_width_holds_it(
    scenario_of: Callable[..., Scenario], one_round: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds=ONE, data=UNEVEN, availability={"shares": (0.6, 0.15, 0.08)})
    federation, before, sent, _ = one_round(scenario, "heterofl")
    table = strategy_table(scenario, "heterofl")
    assert len({each.images for each in sent}) > 1
    assert len({tuple(each.rows) for each in sent}) == 3
    for each in sent:
        ((row, _),) = each.rows.items()
        first, second = filter_counts(table.rows[row].vector, table.sizes)
        assert each.kept.tolist() == [[n < first for n in range(10)] + [n < second for n in range(20)]]
    assert_weights(federation.network, mean_by_hand(before, sent, lambda each, name: each.holds(name).astype(float)))
    for name in before.plan.parameters:
        nobody = ~np.any([each.holds(name) for each in sent], axis=0)
        assert np.array_equal(federation.network.weights[name][nobody], before.weights[name][nobody])
        assert nobody.any() or name == "fc.bias"


def test_a_heterofl_device_trains_the_widest_network_it_can_afford_when_the_round_begins(
    scenario_of: Callable[..., Scenario],
) -> None:
    table = strategy_table(scenario_of(), "heterofl")
    for cores in (0.05, 0.1, 0.3, 0.6, 1.0):
        limit = 1.0001 * cores * table.rows[-1].macs
        affordable = [number for number, row in enumerate(table.rows) if row.macs <= limit]
        begun = pace_over(table, one_row_per_round)
        assert rows_chosen(begun, table, [cores, 1.0, 0.5, cores]) == [max(affordable, default=0)] * 4


# -- FjORD -------------------------------------------------------------------------------------------------------------


def test_fjord_draws_each_width_up_to_what_a_device_can_afford_about_equally_often(
    scenario_of: Callable[..., Scenario],
) -> None:
    table = strategy_table(scenario_of(), "fjord")
    for limit in range(5):
        cores = table.rows[limit].macs / table.rows[-1].macs
        pace = pace_over(table, width_drawn_per_step, planned=2000, most=2000)
        counts = np.bincount(rows_chosen(pace, table, [cores] * 1000), minlength=5)
        assert not counts[limit + 1 :].any()
        # Within 4 standard errors of a binomial.
        share = 1 / (limit + 1)
        assert np.abs(counts[: limit + 1] - 1000 * share).max() <= 4 * np.sqrt(1000 * share * (1 - share))


def test_fjords_limit_stays_that_of_the_rounds_beginning(scenario_of: Callable[..., Scenario]) -> None:
    table = strategy_table(scenario_of(), "fjord")
    pace = pace_over(table, width_drawn_per_step)
    cores = table.rows[1].macs / table.rows[-1].macs
    assert set(rows_chosen(pace, table, [cores, *[1.0] * 40])) == {0, 1}


def test_fjord_averages_each_element_over_the_devices_that_trained_it_by_their_images(
    scenario_of: Callable[..., Scenario], one_round: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds=ONE, data=UNEVEN, availability={"shares": (0.8, 0.2)})
    federation, before, sent, _ = one_round(scenario, "fjord")
    assert len({tuple(each.rows) for each in sent}) > 2
    expected = mean_by_hand(before, sent, lambda each, name: each.images * each.holds(name).astype(float))
    assert_weights(federation.network, expected)


# -- Federated Dropout -------------------------------------------------------------------------------------------------


def test_federated_dropout_fixes_a_sub_model_of_one_size_for_each_device_and_round(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any], sent_by: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds={"number": 2, "devices_per_round": 5}, availability={"shares": (1.0, 0.5)})
    _, _, seen = spy_on(scenario, "federated-dropout")
    sent = [sent_by(strategy_network(scenario, "federated-dropout"), trained) for _, trained in seen]
    assert all(each.mini_batches > 1 and len(each.kept) == 1 for each in sent)  # the same in all mini-batches
    kept = np.array([each.kept[0] for each in sent])
    assert len(np.unique(kept, axis=0)) == len(sent) == 10  # another for every device and round
    assert len(set(kept[:, :10].sum(axis=1))) == len(set(kept[:, 10:].sum(axis=1))) == 1
    assert 1 < kept[0, :10].sum() < 10
    assert kept.any(axis=0).all()  # all filters have their turn


def test_federated_dropout_has_one_row_where_everybody_can_train_the_full_network(
    scenario_of: Callable[..., Scenario],
) -> None:
    assert len(strategy_table(scenario_of(availability={"shares": (1.0,)}), "federated-dropout").rows) == 1


# -- DISTREAL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rival", ["distreal", "distreal-per-round", "uniform-dropout"])
def test_distreal_draws_survivors_anew_for_every_mini_batch(
    scenario_of: Callable[..., Scenario], one_round: Callable[..., Any], rival: str
) -> None:
    scenario = scenario_of(rounds={"number": 1, "devices_per_round": 3}, availability={"shares": (0.5,)})
    _, _, sent, _ = one_round(scenario, rival)
    assert strategy_table(scenario, rival).draw == "random"
    for each in sent:
        assert len(each.kept) == each.mini_batches == 4


def test_a_distreal_row_follows_the_cores_within_the_round(scenario_of: Callable[..., Scenario]) -> None:
    table = strategy_table(scenario_of(), "distreal")
    cores = [0.9, 0.4, 0.15, 0.4, 0.9]
    rows = rows_chosen(pace_over(table, RIVALS["distreal"].pace), table, cores)
    assert rows[0] > rows[1] > rows[2] < rows[3] < rows[4]


def test_per_round_the_row_stays_although_the_cores_change(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    availability = {"kind": "redraw", "least": 0.2, "most": 1.0, "every_s": 6.0}
    scenario = scenario_of(rounds={"number": 2}, availability=availability)
    assert all(len(trained.rows) == 1 for _, trained in spy_on(scenario, "distreal-per-round")[2])
    assert any(len(trained.rows) > 1 for _, trained in spy_on(scenario, "distreal")[2])


def test_distreal_averages_whole_updates_by_images_whatever_was_trained(
    scenario_of: Callable[..., Scenario], one_round: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds=ONE, data=UNEVEN, availability={"shares": (0.8, 0.3)})
    federation, before, sent, _ = one_round(scenario, "distreal")
    expected = mean_by_hand(before, sent, lambda each, name: np.full(each.changes[name].shape, float(each.images)))
    assert_weights(federation.network, expected)


def test_uniform_dropout_has_one_rate_for_all_layers(scenario_of: Callable[..., Scenario]) -> None:
    for row in strategy_table(scenario_of(), "uniform-dropout").rows:
        assert len(set(row.vector)) == 1


# -- ours --------------------------------------------------------------------------------------------------------------


def test_ours_trains_narrow_rows_first_and_wide_ones_after_the_step(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    ceiling = (CeilingStep(from_share=0.0, ceiling=0.4), CeilingStep(from_share=0.5, ceiling=1.0))
    scenario = scenario_of(
        rounds={"number": 4, "devices_per_round": 2}, availability={"shares": (1.0,)}, ceiling=ceiling
    )
    table = strategy_table(scenario, "ours")
    _, records, seen = spy_on(scenario, "ours")
    assert [record.ceiling for record in records] == [0.4, 0.4, 1.0, 1.0]
    widest = [max(table.rows[row].macs / table.rows[-1].macs for row in record.rows) for record in records]
    assert max(widest[:2]) <= 0.4 < min(widest[2:])
    for task, trained in seen:
        # Four are planned; narrow ones leave time for more.
        assert trained.header.mini_batches > 4 or task.manifest.ceiling == 1.0


def test_ours_adaptive_raises_its_ceiling_when_narrow_rows_make_no_more_progress(
    scenario_of: Callable[..., Scenario],
) -> None:
    world, rival = world_of(scenario_of(rounds={"number": 40})), RIVALS["ours-adaptive"]
    assert rival.ceiling_after is not None
    falling, flat = [0.9**number for number in range(20)], [1.0] * 10
    assert rival.ceiling_after(world, falling) == 0.3
    assert rival.ceiling_after(world, flat[:9]) == 0.3
    assert rival.ceiling_after(world, flat) == 1.0
    # And in any case for the last quarter of the rounds.
    assert rival.ceilings(world) == ((0.0, 0.3), (0.75, 1.0))


def test_ours_adaptive_tells_devices_the_ceiling_that_its_progress_allows(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    # A learning rate of next to nothing: no progress. Ten rounds are needed to see that.
    training = {"lr": 1e-9}
    rounds = {"number": 20, "devices_per_round": 1}
    scenario = scenario_of(training=training, rounds=rounds, devices={"number": 2}, evaluate_every=100)
    _, records, seen = spy_on(scenario, "ours-adaptive")
    assert [record.ceiling for record in records] == [0.3] * 10 + [1.0] * 10
    assert [task.manifest.ceiling for task, _ in seen] == [record.ceiling for record in records]


def test_ours_weighs_each_element_by_the_images_that_trained_it(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any], sent_by: Callable[..., Any]
) -> None:
    scenario = scenario_of(rounds={"number": 1, "devices_per_round": 4}, availability={"shares": (0.6, 0.2)})
    before = strategy_network(scenario, "ours")
    federation, _, seen = spy_on(scenario, "ours")
    sent = [sent_by(before, trained) for _, trained in seen]
    table = strategy_table(scenario, "ours")

    def weight(each: Any, name: str) -> NDArray[np.float64]:
        images = kind_images(each, table)
        return np.sum([count * each.holds(name, kind=kind) for kind, count in enumerate(images)], axis=0, dtype=float)

    assert_weights(federation.network, mean_by_hand(before, sent, weight))


def kind_images(each: Any, table: Table) -> list[int]:
    """Return the images of each kind of mini-batch: rows are nested, and each keeps another number of filters."""
    of_width = {sum(filter_counts(table.rows[row].vector, table.sizes)): 5 * times for row, times in each.rows.items()}
    return [of_width[int(kept.sum())] for kept in each.kept]


def test_ours_takes_the_scenarios_table_whatever_its_draw_policy(scenario_of: Callable[..., Scenario]) -> None:
    given = TableChoice(rows=3, draw="rolling", keep_streams=False)
    scenario = scenario_of(table=given)
    table = strategy_table(scenario, "ours")
    assert (table.draw, len(table.rows)) == ("rolling", 3)
    assert strategy_table(scenario, "distreal").draw == "random"


def test_rows_of_every_table_rise_in_cost(scenario_of: Callable[..., Scenario]) -> None:
    for rival in RIVALS:
        macs = [row.macs for row in strategy_table(scenario_of(), rival).rows]
        assert all(after > before for before, after in pairwise(macs))
