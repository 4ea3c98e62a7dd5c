from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.aggregator import HeldOut, Open, average_round, judge_round, record_round
from distreal_edge.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

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
