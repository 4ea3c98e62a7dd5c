from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge import Engine
from distreal_edge.aggregator import Scores
from distreal_edge.data import Batches, Dataset
from distreal_edge.device.trainer import round_seed
from distreal_edge.simulate import Federation, world_of
from distreal_edge.simulate.records import Score, score_of
from distreal_edge.simulate.scenario import Link
from distreal_edge.simulate.training import strategy_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.simulate import Scenario

REDRAW = {"kind": "redraw", "least": 0.1, "most": 1.2, "every_s": 13.0}


def test_an_unlimited_round_is_fedavg_as_an_engine_does_it_by_hand(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    data = {"kind": "dirichlet", "alpha": 2.0, "smallest": 8}
    scenario = scenario_of(rounds={"number": 1, "devices_per_round": 10}, data=data)
    world, before = world_of(scenario), strategy_network(scenario, "full-unlimited")
    federation, (record,), seen = spy_on(scenario, "full-unlimited")
    manifest = seen[0][0].manifest
    everything = before.draw([0.0] * len(before.groups), np.random.default_rng(0))
    total, images = dict.fromkeys(before.plan.parameters, 0.0), 0
    for device in range(10):
        seed = round_seed(manifest, world.name(device))
        engine = Engine(before, seed=seed)
        batches = Batches(world.images(device), 5, np.random.default_rng(seed))
        steps = max(1, round(len(world.shards[device]) / 5))
        for _ in range(steps):
            engine.step(*next(batches), everything, lr=0.05, momentum=0.9, weight_decay=5e-4, threads=1)
        for name in total:
            change = engine.weights[name].astype(np.float64) - before.weights[name]
            total[name] = total[name] + 5 * steps * change
        images += 5 * steps
    assert (record.images, record.mini_batches) == (images, images // 5)
    for name, change in total.items():
        expected = before.weights[name] + change / images
        np.testing.assert_allclose(federation.network.weights[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("rival", ["ours", "full-partial", "small-filled"])
def test_rounds_obey_their_deadlines(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any], rival: str
) -> None:
    scenario = scenario_of(availability=REDRAW, aggregator_s=2.0)
    _, records, seen = spy_on(scenario, rival)
    now_s = 0.0
    for record in records:
        assert record.opened_s == pytest.approx(now_s)
        assert record.opened_s < record.closed_s <= record.opened_s + 60.0
        now_s = record.closed_s + 2.0
    opened_s = {record.round: record.opened_s for record in records}
    for task, trained in seen:
        assert task.opened_s == opened_s[task.manifest.number]
        assert task.start_s > task.opened_s
        assert trained.end_s <= task.opened_s + 54.0 + 1e-9
        assert trained.busy_s <= trained.end_s - task.start_s + 1e-9


def test_a_line_takes_as_long_as_its_bytes_and_its_latency_say(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    _, (record,), seen = spy_on(scenario_of(rounds={"number": 1, "devices_per_round": 2}), "full-unlimited")
    down = [2 * 0.05 + 8 * len(task.model) / 16e6 for task, _ in seen]
    up = [3 * 0.05 + 8 * len(trained.update) / 4e6 for _, trained in seen]
    assert [task.start_s for task, _ in seen] == pytest.approx(down)
    assert (record.downloads_s, record.uploads_s) == (pytest.approx(sum(down)), pytest.approx(sum(up)))
    assert record.closed_s == pytest.approx(
        max(trained.end_s + way for (_, trained), way in zip(seen, up, strict=True))
    )


def test_a_quorum_closes_a_round_and_whoever_comes_after_it_is_late(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any], sent_by: Callable[..., Any]
) -> None:
    rounds = {"number": 1, "devices_per_round": 5, "quorum": 0.6}
    # Everybody plans as much: the slower, the later.
    scenario = scenario_of(rounds=rounds, availability={"shares": (1.0, 0.9, 0.8, 0.7, 0.6)}, devices={"number": 5})
    before = strategy_network(scenario, "small")
    federation, (record,), seen = spy_on(scenario, "small")
    arrivals = [trained.end_s + federation.world.upload_s(len(trained.update)) for _, trained in seen]
    assert (record.answered, record.late, record.selected) == (3, 2, 5)
    assert record.closed_s == pytest.approx(sorted(arrivals)[2])
    changes = [sent_by(before, trained).changes for _, trained in seen[:3]]
    for name in before.plan.parameters:
        mean = np.mean([change[name] for change in changes], axis=0)
        np.testing.assert_allclose(federation.network.weights[name], before.weights[name] + mean, rtol=1e-5, atol=1e-6)


def test_an_update_that_arrives_after_the_deadline_is_late(
    scenario_of: Callable[..., Scenario], records_of: Callable[..., Any]
) -> None:
    rounds = {"number": 1, "devices_per_round": 5, "upload_seconds": 0.01}
    (record,) = records_of(scenario_of(rounds=rounds, availability={"shares": (1.0, 0.2)}), "small-filled")
    assert (record.answered, record.late) == (0, 5)
    assert (record.closed_s, record.training_loss) == (60.0, None)


def test_a_federation_is_reproducible_to_the_last_bit(
    scenario_of: Callable[..., Scenario], records_of: Callable[..., Any]
) -> None:
    scenario = scenario_of(availability=REDRAW)
    assert records_of(scenario, "distreal") == records_of(scenario, "distreal")


def test_the_order_in_which_processes_finish_tasks_changes_nothing(
    scenario_of: Callable[..., Scenario], records_of: Callable[..., Any]
) -> None:
    def backwards(function: Callable[[Any], Any], tasks: Any) -> list[Any]:
        return [function(task) for task in reversed(tasks)][::-1]

    scenario = scenario_of(availability=REDRAW)
    assert list(Federation(scenario, "fjord").rounds(backwards)) == records_of(scenario, "fjord")


def test_going_on_after_a_round_gives_what_never_stopping_gives(
    scenario_of: Callable[..., Scenario], run_here: Callable[..., Any]
) -> None:
    scenario = scenario_of(availability=REDRAW, evaluate_every=100)
    whole = Federation(scenario, "ours")
    rounds = whole.rounds(run_here)
    next(rounds)
    again = Federation(scenario, "ours", after=whole.checkpoint())
    assert list(again.rounds(run_here)) == list(rounds)
    assert again.network.to_bytes() == whole.network.to_bytes()


def test_scores_belong_to_the_model_after_their_round(
    scenario_of: Callable[..., Scenario], records_of: Callable[..., Any]
) -> None:
    every = records_of(scenario_of(availability=REDRAW), "ours")
    seldom = records_of(scenario_of(availability=REDRAW, evaluate_every=2), "ours")
    assert [record.round for record in seldom] == [1, 2, 3]
    assert [record.score for record in seldom] == [None, every[1].score, every[2].score]
    shorter = records_of(scenario_of(availability=REDRAW, rounds={"number": 1, "devices_per_round": 5}), "fjord")
    longer = records_of(scenario_of(availability=REDRAW, rounds={"number": 2, "devices_per_round": 5}), "fjord")
    assert shorter[0].score == longer[0].score


def test_a_federation_in_which_nobody_can_be_selected_ends_and_says_so(
    scenario_of: Callable[..., Scenario], run_here: Callable[..., Any]
) -> None:
    federation = Federation(scenario_of(availability={"shares": (0.5,)}), "full-capable")
    before = federation.network.to_bytes()
    assert list(federation.rounds(run_here)) == []
    assert federation.now_s < 2 * 3 * 61.0 + 60.0
    assert federation.why_ended == (
        "0 of 3 rounds are over, and for the last 366 s the strategy full-capable could never select as many as "
        "1 at a time"
    )
    assert federation.network.to_bytes() == before


def test_a_federation_that_is_through_says_so(scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]) -> None:
    assert spy_on(scenario_of(rounds={"number": 1}), "full-unlimited")[0].why_ended == "all 1 rounds are over"


@pytest.mark.parametrize("rival", ["ours", "full-late-dropped", "heterofl"])
def test_devices_without_a_core_are_asked_and_leave_the_model_as_it_was(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any], rival: str
) -> None:
    scenario = scenario_of(availability={"shares": (0.0,)}, rounds={"number": 2, "devices_per_round": 2})
    federation, records, _ = spy_on(scenario, rival)
    assert [(record.selected, record.mini_batches) for record in records] == [(2, 0), (2, 0)]
    assert federation.network.to_bytes() == strategy_network(scenario, rival).to_bytes()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_diverged_is_counted_and_a_diverged_model_has_no_score(
    scenario_of: Callable[..., Scenario], spy_on: Callable[..., Any]
) -> None:
    scenario = scenario_of(training={"lr": 1000.0, "momentum": 0.99}, rounds={"number": 6, "devices_per_round": 3})
    federation, records, _ = spy_on(scenario, "full-late-dropped")
    assert records[-1].diverged > 0
    # The device answered in time: it is not late, it has nothing sound to say.
    assert all(record.late == 3 - record.answered for record in records)
    for record in records:
        assert (record.score.accuracy is None) == (record.score.loss is None)
    assert all(np.isfinite(tensor).all() for tensor in federation.network.weights.values())


def test_a_score_without_a_finite_loss_is_none() -> None:
    assert score_of(None) == score_of(Scores(0.1, None, 60)) == Score(None, None)
    assert score_of(Scores(0.5, 1.25, 60)) == Score(0.5, 1.25)


def datasets() -> int:
    # Not isinstance: some objects of other libraries warn when they are asked for their class.
    return sum(type(one) is Dataset for one in gc.get_objects())


def test_a_devices_images_are_not_kept_after_its_work(
    scenario_of: Callable[..., Scenario], records_of: Callable[..., Any]
) -> None:
    scenario = scenario_of(name="images-kept", rounds={"number": 2, "devices_per_round": 10})
    world_of(scenario)
    gc.collect()
    before = datasets()
    records_of(scenario, "full-unlimited")
    gc.collect()
    # What other tests have left behind may be gone meanwhile.
    assert datasets() <= before


def test_a_download_longer_than_a_round_leaves_nobody_training_and_nothing_broken(
    scenario_of: Callable[..., Scenario], records_of: Callable[..., Any]
) -> None:
    slow = Link(download_mbit_per_s=1e-4)
    records = records_of(scenario_of(link=slow, rounds={"number": 2, "devices_per_round": 2}), "ours")
    assert [(record.answered, record.mini_batches) for record in records] == [(0, 0), (0, 0)]
    assert all(math.isfinite(record.closed_s) for record in records)
