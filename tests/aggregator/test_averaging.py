from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.aggregator import average_round
from distreal_edge.device import Update
from distreal_edge.dropout import DRAW_POLICIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from distreal_edge.network import Network

KINDS = ("plain", "residual", "depthwise", "grouped", "linear", "concatenated")

Round = tuple["Network", list[tuple[Any, "Update"]]]


@pytest.fixture(scope="module")
def round_of(network_of: Callable[..., Network], maker_of: Callable[..., Any]) -> Callable[..., Round]:
    """Make a network and some devices' logs of mini-batches, each with its update."""

    def make(kind: str, policy: str, seed: int, devices: int, rates: tuple[float, ...] = (0.0, 0.4, 0.9)) -> Round:
        network = network_of(kind, seed)
        maker = maker_of(network, seed)
        steps = np.random.default_rng(seed).integers(0, 4, size=devices)
        logs = [maker.log(policy, int(count), rates) for count in steps]
        return network, [(log, maker.update(log, device=f"pi-{n}")) for n, log in enumerate(logs)]

    return make


def averaged(network: Network, updates: list[Update], kind: Any) -> dict[str, NDArray[np.float32]]:
    return dict(average_round(network, updates, kind).network.weights)


def brute_force(network: Network, made: list[tuple[Any, Update]]) -> dict[str, NDArray[np.float64]]:
    """Average element by element, straight from the logs of mini-batches and the operations of the plan."""
    plan = network.plan
    after = {name: network.weights[name].astype(np.float64) for name in plan.parameters}
    for name, parameter in plan.parameters.items():
        group_rows = parameter.shape[0] // len(parameter.rows)
        for place in product(*map(range, parameter.shape)):
            group, row = divmod(place[0], group_rows)
            behind = [int(parameter.rows[group, row])]
            if parameter.columns is not None:
                behind.append(int(parameter.columns[group, place[1]]))
            total = weight = 0.0
            for log, update in made:
                images = 0
                for subset, count in log:
                    kept = set()
                    for survivors, start in zip(subset.survivors, plan.group_offsets, strict=False):
                        kept |= {start + int(survivor) for survivor in survivors}
                    images += count if all(filter_id == -1 or filter_id in kept for filter_id in behind) else 0
                total += images * float(update.changes[name][place])
                weight += images
            if weight:
                after[name][place] += total / weight
    return after


@pytest.mark.parametrize("kind", KINDS)
def test_holders_weigh_by_their_images_what_they_trained_and_have_no_say_elsewhere(
    round_of: Callable[..., Round], kind: str
) -> None:
    network, made = round_of(kind, "random", 4, 3)
    updates = [update for _, update in made if update.header.images]
    found = averaged(network, updates, "holders")
    for name, old in network.weights.items():
        if name not in network.plan.parameters:
            continue
        # By chance no change of a trained element is 0.
        images = np.array([update.header.images * (update.changes[name] != 0.0) for update in updates])
        changes = np.array([update.changes[name] for update in updates], dtype=np.float64)
        mean = (images * changes).sum(axis=0) / np.maximum(1, images.sum(axis=0))
        np.testing.assert_allclose(found[name], old + mean, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("way", ["touch", "fedavg", "holders", "median", "trimmed_mean"])
def test_factors_multiply_changes_and_leave_weights_and_votes_as_they_are(
    round_of: Callable[..., Round], way: Any
) -> None:
    network, made = round_of("residual", "random", 5, 4)
    updates = [update for _, update in made]
    factors = [0.25, 1.0, 0.5, 2.0]
    scaled = [
        replace(update, changes={name: np.float32(factor) * change for name, change in update.changes.items()})
        for update, factor in zip(updates, factors, strict=True)
    ]
    found = average_round(network, updates, way, factors).network.weights
    for name, expected in averaged(network, scaled, way).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("policy", DRAW_POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_touch_weighting_is_the_mean_over_the_mini_batches_that_trained_an_element(
    round_of: Callable[..., Round], kind: str, policy: str
) -> None:
    network, made = round_of(kind, policy, 3, 3)
    found = averaged(network, [update for _, update in made], "touch")
    for name, expected in brute_force(network, made).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(KINDS), policy=st.sampled_from(sorted(DRAW_POLICIES)), seed=st.integers(0, 10**6),
    devices=st.integers(0, 4),
)  # fmt: skip
def test_touch_weighting_equals_brute_force_whatever_was_drawn(
    round_of: Callable[..., Round], kind: str, policy: str, seed: int, devices: int
) -> None:
    network, made = round_of(kind, policy, seed, devices)
    found = averaged(network, [update for _, update in made], "touch")
    for name, expected in brute_force(network, made).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_at_rate_zero_both_ways_are_the_mean_weighted_by_images(round_of: Callable[..., Round], kind: str) -> None:
    network, made = round_of(kind, "ordered", 5, 4, (0.0,))
    updates = [update for _, update in made]
    images = np.array([update.header.images for update in updates], dtype=np.float64)
    assert images.sum() > 0
    touch, fedavg = averaged(network, updates, "touch"), averaged(network, updates, "fedavg")
    for name in network.plan.parameters:
        changes = np.array([update.changes[name] for update in updates], dtype=np.float64)
        expected = network.weights[name] + np.tensordot(images / images.sum(), changes, axes=1)
        np.testing.assert_allclose(fedavg[name], expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(touch[name], fedavg[name])


def test_fedavg_counts_a_device_in_full_even_where_it_trained_nothing(round_of: Callable[..., Round]) -> None:
    network, made = round_of("plain", "ordered", 1, 3)
    updates = [update for _, update in made]
    images = np.array([update.header.images for update in updates], dtype=np.float64)
    found = averaged(network, updates, "fedavg")
    for name in network.plan.parameters:
        changes = np.array([update.changes[name] for update in updates], dtype=np.float64)
        expected = network.weights[name] + np.tensordot(images / images.sum(), changes, axes=1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("way", ["touch", "fedavg"])
def test_without_updates_the_model_keeps_every_bit(network_of: Callable[..., Network], way: Any) -> None:
    network = network_of("residual")
    assert average_round(network, [], way).network.to_bytes() == network.to_bytes()


@pytest.mark.parametrize("way", ["touch", "fedavg"])
def test_an_update_of_no_images_changes_nothing(
    network_of: Callable[..., Network], maker_of: Callable[..., Any], way: Any
) -> None:
    network = network_of("residual")
    maker = maker_of(network)
    idle = maker.update([], device="idle")
    assert average_round(network, [idle], way).network.to_bytes() == network.to_bytes()
    busy = maker.update(maker.log("ordered", 2), device="busy")
    alone, together = average_round(network, [busy], way), average_round(network, [busy, idle], way)
    assert alone.network.to_bytes() == together.network.to_bytes()
    assert together.answered == ("busy", "idle")


def test_elements_that_nobody_trained_keep_every_bit(
    network_of: Callable[..., Network], maker_of: Callable[..., Any]
) -> None:
    network = network_of("plain")
    network.weights["conv1.weight"][3, 1, 2, 2] = np.float32(-0.0)
    maker = maker_of(network)
    log = maker.log("ordered", 3, (0.6,))  # the ordered draw never keeps the last filters
    update = maker.update(log)
    found = averaged(network, [update], "touch")
    seen = 0
    for name, parameter in network.plan.parameters.items():
        untouched = ~np.broadcast_to(parameter.touched(update.kept.any(axis=0)), parameter.shape)
        seen += int(untouched.sum())
        assert found[name][untouched].tobytes() == network.weights[name][untouched].tobytes()
    assert seen > 10
    assert np.signbit(found["conv1.weight"][3, 1, 2, 2])


def test_batch_norm_statistics_are_never_averaged(
    network_of: Callable[..., Network], maker_of: Callable[..., Any]
) -> None:
    network = network_of("residual")
    maker = maker_of(network)
    updates = [maker.update(maker.log("random", 2), device=f"pi-{n}", statistics_images=32) for n in range(3)]
    after = average_round(network, updates, "touch").network
    for name in network.plan.statistics:
        assert after.weights[name].tobytes() == network.weights[name].tobytes()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)), way=st.sampled_from(["touch", "fedavg"]))
def test_the_order_of_updates_matters_in_the_last_bits_only(
    round_of: Callable[..., Round], seed: int, order: list[int], way: str
) -> None:
    network, made = round_of("concatenated", "random", seed, 4)
    updates = [update for _, update in made]
    one, other = averaged(network, updates, way), averaged(network, [updates[n] for n in order], way)
    for name in network.plan.parameters:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-7)


def test_the_report_of_a_round_adds_up(network_of: Callable[..., Network], maker_of: Callable[..., Any]) -> None:
    network = network_of("plain")
    maker = maker_of(network)
    logs = [maker.log("ordered", steps) for steps in (2, 0, 3)]
    losses = (2.0, None, 1.0)
    updates = [
        maker.update(log, device=f"pi-{number}", loss=loss, macs=1000 * number)
        for number, (log, loss) in enumerate(zip(logs, losses, strict=True))
    ]
    found = average_round(network, iter(updates), "touch")
    images = [sum(count for _, count in log) for log in logs]
    assert (found.images, found.mini_batches, found.macs) == (sum(images), 5, 3000)
    assert found.training_loss == pytest.approx((2.0 * images[0] + 1.0 * images[2]) / sum(images))
    assert found.measured is None


def test_huge_changes_that_keep_each_update_finite_keep_the_average_finite(
    network_of: Callable[..., Network], maker_of: Callable[..., Any]
) -> None:
    network = network_of("plain")
    maker = maker_of(network)
    log = maker.log("ordered", 1, (0.0,))
    updates = [maker.update(log, device=f"pi-{n}") for n in range(3)]
    for update in updates:
        for change in update.changes.values():
            change[...] = np.float32(3.4e38)
    weights = averaged(network, updates, "touch")
    assert all(np.isfinite(weights[name]).all() for name in network.plan.parameters)


def of_a_branch(network: Network, made: list[tuple[Any, Update]], name: str) -> Update:
    """Average some devices' updates into one that stands for all of them: their mean changes, and all their subsets."""
    updates = [update for _, update in made]
    changes = {}
    for each, parameter in network.plan.parameters.items():
        weights = [parameter.images_per_element(update.kept, update.kept_images) for update in updates]
        total = np.sum([w * update.changes[each] for w, update in zip(weights, updates, strict=True)], axis=0)
        weight = np.sum(weights, axis=0)
        changes[each] = (total / np.where(weight > 0, weight, 1)).astype(np.float32)
    header = msgspec.structs.replace(
        updates[0].header,
        device=name,
        images=sum(update.header.images for update in updates),
        mini_batches=sum(update.header.mini_batches for update in updates),
    )
    kept = np.concatenate([update.kept for update in updates])
    return Update(header, changes, {}, kept, np.concatenate([update.kept_images for update in updates]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", DRAW_POLICIES)
def test_a_touch_weighted_average_over_a_tree_is_that_of_all_devices(
    kind: str, policy: str, round_of: Callable[..., Round]
) -> None:
    network, made = round_of(kind, policy, 3, 7)
    branches = [of_a_branch(network, made[:2], "left"), of_a_branch(network, made[2:], "right")]
    over_a_tree, at_once = (averaged(network, each, "touch") for each in (branches, [update for _, update in made]))
    for name, expected in at_once.items():
        np.testing.assert_allclose(over_a_tree[name], expected, rtol=1e-6, atol=1e-6)
