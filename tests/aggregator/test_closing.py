from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.aggregator import (
    HeldOut,
    Open,
    average_round,
    evaluate,
    judge_round,
    measure_statistics,
    record_round,
    trained_part,
    with_statistics,
)
from distreal_edge.aggregator.schedule import widest_ceiling
from distreal_edge.network import Network
from distreal_edge.search import uniform_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.dropout import Table
    from distreal_edge.transport import Manifest

OPENED = Open(4, ("pi-1", "pi-2", "pi-3"), 100.0, 108.0, 110.0, measure_only=False)


@pytest.fixture
def images(images_of: Any) -> Any:
    return images_of(12)


def test_measured_here_the_newest_model_is_the_one_just_averaged(network: Network, maker: Any, images: Any) -> None:
    averaged = average_round(network, [maker.update(maker.log("ordered", 2), statistics_images=32)], "touch")
    judged = judge_round(OPENED, averaged, HeldOut(images, images))
    assert judged is not None
    assert judged.after_round == 4
    assert judged.scores is not None
    for name in network.plan.parameters:
        assert judged.network.weights[name].tobytes() == averaged.network.weights[name].tobytes()


def test_measured_on_devices_it_is_the_one_that_they_received(network: Network, maker: Any, images: Any) -> None:
    averaged = average_round(network, [maker.update(maker.log("ordered", 2), statistics_images=32)], "touch")
    judged = judge_round(OPENED, averaged, HeldOut(images))
    assert judged is not None
    assert judged.after_round == 3
    for name in network.plan.parameters:
        assert judged.network.weights[name].tobytes() == network.weights[name].tobytes()
    for name in network.plan.statistics:
        assert judged.network.weights[name].tobytes() != network.weights[name].tobytes()


def table_of(network: Network, draw: str = "ordered") -> Table:
    return uniform_table(network, draw=draw, rows=4)


def test_of_a_network_that_was_never_trained_beyond_a_row_that_row_is_scored(
    network: Network, maker: Any, images: Any
) -> None:
    averaged = average_round(network, [maker.update(maker.log("ordered", 2))], "touch")
    part = trained_part(table_of(network), 0.5)
    assert part is not None
    judged = judge_round(OPENED, averaged, HeldOut(images, images), part)
    assert judged is not None
    assert judged.share == part.share < 0.5
    # The same by hand: with what lies outside of the part at zero, and statistics measured so, nothing else has a say.
    full = np.random.default_rng(0)
    kept = network.draw(part.vector, full).mask(network.plan.sizes)
    weights = {
        name: np.where(network.plan.parameters[name].touched(kept), tensor, np.float32(0.0))
        if name in network.plan.parameters
        else tensor
        for name, tensor in averaged.network.weights.items()
    }
    silenced = Network(network.plan, weights)
    silenced = with_statistics(silenced, measure_statistics(silenced, images, 1))
    expected = evaluate(silenced, images, 1)
    assert judged.scores is not None
    assert judged.scores.accuracy == expected.accuracy
    assert judged.scores.loss == pytest.approx(expected.loss, rel=1e-4)
    # What is kept and goes on is the whole network, as without a part.
    whole = judge_round(OPENED, averaged, HeldOut(images, images))
    assert whole is not None
    assert whole.share == 1.0
    assert whole.network.to_bytes() == judged.network.to_bytes()


def test_a_part_without_statistics_of_its_own_is_not_scored(network: Network, maker: Any, images: Any) -> None:
    averaged = average_round(network, [maker.update(maker.log("ordered", 2), statistics_images=32)], "touch")
    judged = judge_round(OPENED, averaged, HeldOut(images), trained_part(table_of(network), 0.5))
    assert judged is not None
    assert judged.share == 1.0


@pytest.mark.parametrize(("draw", "ceiling"), [("ordered", 1.0), ("random", 0.3), ("rolling", 0.3), ("sticky", 0.3)])
def test_what_may_have_trained_all_filters_is_scored_whole(network: Network, draw: str, ceiling: float) -> None:
    assert trained_part(table_of(network, draw), ceiling) is None


def test_a_ceiling_that_was_lowered_leaves_trained_what_was_trained() -> None:
    steps = ((0.0, 0.3), (0.25, 0.8), (0.5, 0.4))
    assert [widest_ceiling(steps, number, 4) for number in (1, 2, 3, 4)] == [0.3, 0.8, 0.8, 0.8]


def test_a_round_in_which_nobody_measured_makes_no_model_known(network: Network, maker: Any, images: Any) -> None:
    averaged = average_round(network, [maker.update(maker.log("ordered", 2))], "touch")
    assert judge_round(OPENED, averaged, HeldOut(images)) is None
    assert judge_round(OPENED, average_round(network, [], "touch"), HeldOut(images, images)) is None


def test_without_test_images_the_newest_model_is_known_and_not_scored(
    network: Network, maker: Any, images: Any
) -> None:
    averaged = average_round(network, [maker.update(maker.log("ordered", 2))], "touch")
    judged = judge_round(OPENED, averaged, HeldOut(None, images))
    assert judged is not None
    assert judged.scores is None


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_a_model_that_has_diverged_is_recorded_and_stops_nothing(
    network: Network,
    maker: Any,
    images: Any,
    manifest_of: Callable[..., Manifest],
    size: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    update = maker.update(maker.log("ordered", 1, (0.0,)), statistics_images=32)
    for change in update.changes.values():
        change[...] = size
    for tensor in update.statistics.values():
        tensor[...] = size
    averaged = average_round(network, [update], "touch")
    for held_out in (HeldOut(images), HeldOut(images, images)):
        judged = judge_round(OPENED, averaged, held_out)
        closed = record_round(OPENED, manifest_of(network), averaged, judged, closed_s=120.0)
        Network.from_bytes(closed.model)
        assert closed.record.loss is None or np.isfinite(closed.record.loss)
    assert judged is None or judged.scores is not None
    assert (judged is None) == ("has diverged" in caplog.text)


def test_the_record_tells_of_the_round(
    network: Network, maker: Any, images: Any, manifest_of: Callable[..., Manifest]
) -> None:
    updates = [maker.update(maker.log("ordered", 2), device=name) for name in ("pi-3", "pi-1")]
    averaged = average_round(network, updates, "touch")
    judged = judge_round(OPENED, averaged, HeldOut(images, images))
    closed = record_round(OPENED, manifest_of(network, ceiling=0.3), averaged, judged, closed_s=120.0)
    record = closed.record
    assert (record.round, record.started_s, record.closed_s, record.ceiling, record.lr) == (4, 100.0, 120.0, 0.3, 0.1)
    assert (record.selected, record.answered) == (("pi-1", "pi-2", "pi-3"), ("pi-1", "pi-3"))
    assert record.images == sum(update.header.images for update in updates)
    assert record.evaluated_images == 12
    assert record.model == hashlib.sha256(closed.model).hexdigest()
    assert judged is not None
    assert closed.model == judged.network.to_bytes()
