from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.config import CeilingStep
from distreal_edge.network import Network
from distreal_edge.simulate import AsynchronousFederation, Federation, federation_of
from distreal_edge.simulate.scenario import Asynchronous
from distreal_edge.simulate.training import strategy_network

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distreal_edge.simulate import Scenario

FEDBUFF = {"asynchronous": Asynchronous(buffer=3, concurrency=4)}
REDRAW = {"kind": "redraw", "least": 0.1, "most": 1.2, "every_s": 13.0}


@pytest.fixture
def watched(run_here: Callable[..., Any]) -> Callable[..., Any]:
    """Run a federation without rounds; return it, its records, and each training with when it arrived."""

    def run(scenario: Scenario, rival: str) -> tuple[AsynchronousFederation, list[Any], list[tuple[float, Any, Any]]]:
        seen: list[tuple[float, Any, Any]] = []

        def runner(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
            results = run_here(function, tasks)
            for task, trained in zip(tasks, results, strict=True):
                if hasattr(task, "device"):
                    seen.append((trained.end_s + federation.world.upload_s(len(trained.update)), task, trained))
            return results

        federation = AsynchronousFederation(scenario, rival)
        return federation, list(federation.rounds(runner)), seen

    return run


def test_each_model_is_the_last_one_and_the_mean_of_a_buffer_of_changes_by_their_staleness(
    scenario_of: Callable[..., Scenario], watched: Callable[..., Any], sent_by: Callable[..., Any]
) -> None:
    # Devices of a third of the cores take three times as long as the others, so that models overtake them.
    scenario = scenario_of(**FEDBUFF, availability={"shares": (1.0, 0.9, 0.35)}, rounds={"number": 5})
    federation, records, seen = watched(scenario, "full-late-dropped")
    network = strategy_network(scenario, "full-late-dropped")
    arrivals = sorted((one for one in seen if one[0] < 5 * 61.0), key=lambda one: one[0])
    models = [{name: network.weights[name].astype(np.float64) for name in network.plan.parameters}]
    made_s: list[float] = []
    staleness = []
    for first in range(0, len(arrivals) - 2, 3):
        buffer = arrivals[first : first + 3]
        # A new model is there a second after it was made.
        behind = [len(made_s) - sum(time_s + 1.0 <= task.opened_s + 1e-9 for time_s in made_s) for _, task, _ in buffer]
        changes = [sent_by(network, trained).changes for _, _, trained in buffer]
        models.append(
            {
                name: tensor + sum(change[name] / np.sqrt(1 + s) for change, s in zip(changes, behind, strict=True)) / 3
                for name, tensor in models[-1].items()
            }
        )
        for (_, task, _), s in zip(buffer, behind, strict=True):
            began_with = Network.from_bytes(task.model).weights
            for name, tensor in models[len(made_s) - s].items():
                np.testing.assert_allclose(began_with[name], tensor, rtol=1e-4, atol=1e-5)
        made_s.append(buffer[-1][0])
        staleness.append(np.mean(behind))
    assert max(staleness) > 1.0
    assert [record.closed_s for record in records] == pytest.approx(made_s)
    assert [record.staleness for record in records] == pytest.approx(staleness)
    for name, tensor in models[-1].items():
        np.testing.assert_allclose(federation.network.weights[name], tensor, rtol=1e-4, atol=1e-5)


def test_so_many_devices_train_at_a_time_and_none_twice(
    scenario_of: Callable[..., Scenario], watched: Callable[..., Any]
) -> None:
    scenario = scenario_of(**FEDBUFF, availability=REDRAW, aggregator_s=0.0)
    _, _, seen = watched(scenario, "distreal")
    for second in np.arange(0.25, 183.0, 0.5):
        busy = Counter(task.device for arrival_s, task, _ in seen if task.opened_s <= second < arrival_s)
        assert sum(busy.values()) == 4
        assert max(busy.values()) == 1


def test_no_two_pieces_of_work_share_their_seed(
    scenario_of: Callable[..., Scenario], watched: Callable[..., Any]
) -> None:
    _, _, seen = watched(scenario_of(**FEDBUFF), "small")
    numbers = [task.manifest.number for _, task, _ in seen]
    assert len(set(numbers)) == len(numbers) > 10


def test_nobody_is_left_out_for_being_slow(scenario_of: Callable[..., Scenario], watched: Callable[..., Any]) -> None:
    scenario = scenario_of(**FEDBUFF, availability={"shares": (0.4,)}, rounds={"number": 8})
    federation, records, seen = watched(scenario, "full-late-dropped")
    assert len(records) >= 3
    for arrival_s, task, trained in seen:
        if arrival_s < scenario.length_s:
            assert trained.header.mini_batches == federation.world.planned(task.device)
            assert arrival_s - task.opened_s > 60.0
    assert {record.mini_batches for record in records} == {12}


def test_a_device_that_paces_itself_has_a_rounds_length_from_when_it_begins(
    scenario_of: Callable[..., Scenario], watched: Callable[..., Any]
) -> None:
    _, _, seen = watched(scenario_of(**FEDBUFF, availability=REDRAW), "full-partial")
    assert all(trained.end_s <= task.opened_s + 54.0 + 1e-9 for _, task, trained in seen)
    assert any(task.opened_s % 61.0 > 1.0 for _, task, _ in seen)


def test_it_lasts_as_long_as_the_rounds_would_have(
    scenario_of: Callable[..., Scenario], watched: Callable[..., Any]
) -> None:
    scenario = scenario_of(**FEDBUFF)
    federation, records, _ = watched(scenario, "ours")
    assert records[-1].closed_s < federation.now_s == scenario.length_s == 3 * 61.0
    assert records[0].opened_s == 0.0
    assert [after.opened_s for after in records[1:]] == [before.closed_s for before in records[:-1]]
    assert federation.why_ended == f"its 183 s are over, with {len(records)} aggregations"


def test_the_ceiling_rises_with_the_time_that_has_passed(
    scenario_of: Callable[..., Scenario], watched: Callable[..., Any]
) -> None:
    steps = (CeilingStep(from_share=0.0, ceiling=0.4), CeilingStep(from_share=0.5, ceiling=1.0))
    scenario = scenario_of(**FEDBUFF, ceiling=steps, rounds={"number": 4})
    _, _, seen = watched(scenario, "ours")
    assert {task.manifest.ceiling for _, task, _ in seen if task.opened_s < 122.0} == {0.4}
    assert {task.manifest.ceiling for _, task, _ in seen if task.opened_s >= 122.0} == {1.0}


def test_every_so_manieth_model_and_the_last_one_are_scored(
    scenario_of: Callable[..., Scenario], watched: Callable[..., Any]
) -> None:
    _, records, _ = watched(scenario_of(**FEDBUFF, evaluate_every=2), "small")
    scored = [record.round for record in records if record.score is not None]
    assert [record.round for record in records] == list(range(1, len(records) + 1))
    assert scored == sorted({*range(2, len(records) + 1, 2), len(records)})


@pytest.mark.parametrize("rival", ["heterofl", "distreal"])
def test_it_is_reproducible_whatever_the_order_of_tasks(
    scenario_of: Callable[..., Scenario], run_here: Callable[..., Any], rival: str
) -> None:
    def backwards(function: Callable[[Any], Any], tasks: Any) -> list[Any]:
        return list(reversed([function(task) for task in reversed(tasks)]))

    scenario = scenario_of(**FEDBUFF, availability=REDRAW, rounds={"number": 2})
    one = list(AsynchronousFederation(scenario, rival).rounds(run_here))
    assert one == list(AsynchronousFederation(scenario, rival).rounds(backwards))


def test_a_federation_in_which_nobody_can_begin_ends_and_says_so(
    scenario_of: Callable[..., Scenario], watched: Callable[..., Any]
) -> None:
    federation, records, _ = watched(scenario_of(**FEDBUFF, availability={"shares": (0.5,)}), "full-capable")
    assert records == []
    assert federation.why_ended == "its 183 s are over, with 0 aggregations"


def test_the_scenario_says_which_it_is(scenario_of: Callable[..., Scenario]) -> None:
    assert isinstance(federation_of(scenario_of(), "ours"), Federation)
    assert isinstance(federation_of(scenario_of(**FEDBUFF), "ours"), AsynchronousFederation)
