"""Averages that withstand hostile devices, against brute force: element by element, update by update."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.aggregator import AverageRule, average_updates, pool_statistics
from distreal_edge.aggregator.contribution import Contribution
from distreal_edge.aggregator.robust import (
    hostile_count,
    krum_choice,
    mean_square_distances,
    median_of,
    most_trimmed,
    sort_columns,
    trimmed_mean_of,
)
from distreal_edge.device import Update, encode_update, read_update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from distreal_edge.network import Network

KINDS = ("plain", "residual", "depthwise", "grouped", "linear", "concatenated")
ROBUST = ("median", "trimmed_mean", "krum", "multi_krum")


@pytest.fixture(scope="module")
def round_of(network_of: Callable[..., Network], maker_of: Callable[..., Any]) -> Callable[..., Any]:
    """Make a network and the updates of some devices, a few of which trained nothing, and few everything."""

    def make(kind: str, policy: str, seed: int, devices: int) -> tuple[Network, list[Update]]:
        network = network_of(kind, seed)
        maker = maker_of(network, seed)
        steps = np.random.default_rng(seed).integers(0, 4, size=devices)
        logs = [maker.log(policy, int(count), (0.0, 0.4, 0.9)) for count in steps]
        return network, [maker.update(log, device=f"pi-{n:02d}") for n, log in enumerate(logs)]

    return make


def averaged(
    network: Network, updates: Sequence[Update], rule: AverageRule, written: Any = ()
) -> dict[str, NDArray[np.float32]]:
    readers = [read_update(encode_update(update, *written), network.plan) for update in updates]
    return average_updates(network.plan, network.weights, readers, rule)


def votes(network: Network, updates: Sequence[Update], name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return all changes of a tensor, and which devices trained which elements: both `[devices, *shape]`."""
    parameter = network.plan.parameters[name]
    trained = [
        np.broadcast_to(
            np.any([parameter.touched(mask) for mask in update.kept], axis=0) if len(update.kept) else np.False_,
            parameter.shape,
        )
        for update in updates
    ]
    return np.array([update.changes[name].astype(np.float64) for update in updates]), np.array(trained)


def middle(values: list[float], kind: str, share: float) -> float:
    """Return the median or trimmed mean of some numbers, as a person would."""
    ordered = sorted(values)
    if kind == "median":
        half = len(ordered) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    cut = min(math.ceil(round(share * len(ordered), 9)), (len(ordered) - 1) // 2)
    left = ordered[cut : len(ordered) - cut]
    return sum(left) / len(left)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    policy=st.sampled_from(["ordered", "random"]),
    seed=st.integers(0, 10**6),
    devices=st.integers(1, 7),
    way=st.sampled_from(["median", "trimmed_mean"]),
    share=st.sampled_from([0.0, 0.1, 0.2, 0.34, 0.49]),
)
def test_every_element_is_what_its_contributors_make_of_it(
    round_of: Callable[..., Any], kind: str, policy: str, seed: int, devices: int, way: Any, share: float
) -> None:
    network, updates = round_of(kind, policy, seed, devices)
    found = averaged(network, updates, AverageRule(way, share))
    for name, parameter in network.plan.parameters.items():
        changes, trained = votes(network, updates, name)
        for place in product(*map(range, parameter.shape)):
            own = [float(changes[(n, *place)]) for n in range(devices) if trained[(n, *place)]]
            old = network.weights[name][place]
            if own:
                expected = float(old) + middle(own, way, share)
                assert found[name][place] == pytest.approx(expected, rel=1e-6, abs=1e-7)
            else:
                assert found[name][place].tobytes() == old.tobytes()


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    policy=st.sampled_from(["ordered", "random"]),
    seed=st.integers(0, 10**6),
    devices=st.integers(1, 8),
    share=st.sampled_from([0.0, 0.2, 0.4]),
    one=st.booleans(),
)
def test_krum_takes_the_updates_that_are_nearest_to_their_neighbours(
    round_of: Callable[..., Any], kind: str, policy: str, seed: int, devices: int, share: float, one: bool
) -> None:
    network, updates = round_of(kind, policy, seed, devices)
    updates = [update for update in updates if update.header.images]
    if not updates:
        return
    devices = len(updates)
    distances = np.full((devices, devices), np.inf)
    every = [votes(network, updates, name) for name in network.plan.parameters]
    for one_of, other in product(range(devices), repeat=2):
        total, count = 0.0, 0
        for changes, trained in every:
            both = trained[one_of] & trained[other]
            total += float(np.square(changes[one_of][both] - changes[other][both]).sum())
            count += int(both.sum())
        if one_of != other and count:
            distances[one_of, other] = total / count
    contributions = [Contribution(read_update(encode_update(update), network.plan)) for update in updates]
    found = mean_square_distances(network.plan, contributions)
    apart = ~np.eye(devices, dtype=bool)
    np.testing.assert_allclose(found[apart], distances[apart], rtol=1e-6, atol=1e-12)
    hostile = math.ceil(round(share * devices, 9))
    near = max(1, devices - hostile - 2)
    scores = [sum(sorted(row)[: min(near, devices - 1)]) for row in distances]
    ranked = sorted(range(devices), key=lambda n: (round(scores[n], 9) if scores[n] < np.inf else np.inf, n))
    chosen = krum_choice(network.plan, contributions, share, one=one)
    assert chosen == sorted(ranked[: 1 if one else max(1, devices - hostile)])
    rule = AverageRule("krum" if one else "multi_krum", share)
    after = averaged(network, updates, rule)
    for name in network.plan.parameters:
        changes, trained = votes(network, [updates[n] for n in chosen], name)
        counts = trained.sum(axis=0)
        mean = changes.sum(axis=0) / np.maximum(counts, 1)
        np.testing.assert_allclose(after[name], network.weights[name] + mean, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6), order=st.permutations(range(6)), way=st.sampled_from([*ROBUST, "touch", "fedavg"]),
    clip=st.sampled_from([None, 2.0, "median"]),
)  # fmt: skip
def test_the_order_of_updates_does_not_matter(
    round_of: Callable[..., Any], seed: int, order: list[int], way: Any, clip: Any
) -> None:
    network, updates = round_of("concatenated", "random", seed, 6)
    rule = AverageRule(way, 0.2, clip)
    one, other = averaged(network, updates, rule), averaged(network, [updates[n] for n in order], rule)
    for name in network.plan.parameters:
        if way in {"median", "krum"}:
            assert one[name].tobytes() == other[name].tobytes()
        else:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), honest=st.integers(3, 7), data=st.data(),
    attack=st.sampled_from([-1e4, 1e4, 3e30]), way=st.sampled_from(["median", "trimmed_mean"]),
)  # fmt: skip
def test_few_hostile_devices_cannot_leave_the_range_of_the_honest(
    round_of: Callable[..., Any],
    maker_of: Callable[..., Any],
    seed: int,
    honest: int,
    data: Any,
    attack: float,
    way: Any,
) -> None:
    network, updates = round_of("residual", "ordered", seed, honest)
    hostile = data.draw(st.integers(0, (honest - 1) // 2))
    share = hostile / (honest + hostile)
    maker = maker_of(network, seed + 1)
    sizes = network.plan.sizes
    for number in range(hostile):
        bad = maker.update(maker.log("ordered", 1, (0.0,)), device=f"bad-{number}")
        for change in bad.changes.values():
            change[...] = np.float32(attack)
        updates.append(bad)
    assert sizes
    found = averaged(network, updates, AverageRule(way, share))
    for name in network.plan.parameters:
        changes, trained = votes(network, updates[:honest], name)
        enough = trained.sum(axis=0) > hostile  # of the element's contributors, the hostile are fewer than half
        low = network.weights[name] + np.where(trained, changes, np.inf).min(axis=0)
        high = network.weights[name] + np.where(trained, changes, -np.inf).max(axis=0)
        spare = 1e-5 * (1 + np.abs(network.weights[name]))
        if way == "trimmed_mean":  # the share is of the element's contributors
            counts = trained.sum(axis=0) + hostile
            enough &= np.array([most_trimmed(np.array([c]), share)[0] for c in counts.flat]).reshape(counts.shape) >= (
                hostile
            )
        assert np.all((found[name] >= low - spare)[enough])
        assert np.all((found[name] <= high + spare)[enough])


def test_krum_leaves_out_who_is_far_from_all(round_of: Callable[..., Any], maker_of: Callable[..., Any]) -> None:
    network, _ = round_of("plain", "ordered", 0, 1)
    maker = maker_of(network, 3)
    updates = [maker.update(maker.log("ordered", 2, (0.0, 0.4)), device=f"pi-{n}") for n in range(7)]
    for number in (1, 4):
        for change in updates[number].changes.values():
            change[...] *= -50
    contributions = [Contribution(read_update(encode_update(update), network.plan)) for update in updates]
    assert krum_choice(network.plan, contributions, 0.2, one=False) == [0, 2, 3, 5, 6]
    assert krum_choice(network.plan, contributions, 0.2, one=True)[0] in {0, 2, 3, 5, 6}


@pytest.mark.parametrize("way", ROBUST)
def test_an_update_of_no_images_has_no_vote(
    round_of: Callable[..., Any], maker_of: Callable[..., Any], way: Any
) -> None:
    network, _ = round_of("residual", "ordered", 0, 1)
    maker = maker_of(network)
    idle = maker.update([], device="idle")
    assert all(
        tensor.tobytes() == network.weights[name].tobytes()
        for name, tensor in averaged(network, [idle], AverageRule(way)).items()
    )
    busy = [maker.update(maker.log("ordered", 2), device=f"pi-{n}") for n in range(3)]
    alone, together = (averaged(network, each, AverageRule(way)) for each in (busy, [idle, *busy]))
    assert all(alone[name].tobytes() == together[name].tobytes() for name in alone)


@pytest.mark.parametrize("way", ROBUST)
def test_one_device_decides_alone_and_alike_devices_agree(
    round_of: Callable[..., Any], maker_of: Callable[..., Any], way: Any
) -> None:
    network, _ = round_of("plain", "ordered", 0, 1)
    maker = maker_of(network)
    update = maker.update(maker.log("ordered", 2), device="pi-1")
    twin = Update(
        msgspec.structs.replace(update.header, device="pi-2", uid="twin"),
        update.changes, update.statistics, update.kept, update.kept_images,
    )  # fmt: skip
    for updates in ([update], [update, twin]):
        found = averaged(network, updates, AverageRule(way))
        for name in network.plan.parameters:
            expected = (network.weights[name].astype(np.float64) + update.changes[name]).astype(np.float32)
            assert np.array_equal(found[name], expected)


def test_the_images_that_a_device_claims_give_it_no_more_votes(
    round_of: Callable[..., Any], maker_of: Callable[..., Any]
) -> None:
    network, _ = round_of("plain", "ordered", 0, 1)
    maker = maker_of(network)
    (subset, _), *_ = maker.log("ordered", 1, (0.0,))
    updates = [maker.update([(subset, 8)], device=f"pi-{n}") for n in range(5)]
    loud = maker.update([(subset, 800)], device="pi-1")
    louder = Update(msgspec.structs.replace(loud.header, uid="u"), updates[1].changes, {}, loud.kept, loud.kept_images)
    for way in ROBUST:
        modest = averaged(network, updates, AverageRule(way))
        bold = averaged(network, [updates[0], louder, *updates[2:]], AverageRule(way))
        assert all(modest[name].tobytes() == bold[name].tobytes() for name in modest)


@settings(deadline=None, max_examples=60)
@given(devices=st.integers(1, 70), columns=st.integers(1, 5), seed=st.integers(0, 1000))
def test_columns_are_sorted(devices: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(-5, 6, size=(devices, columns)).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.1] = np.inf
    expected = np.sort(numbers, axis=0)
    sort_columns(numbers)
    assert np.array_equal(numbers, expected)


def test_any_zeros_and_ones_are_sorted_so_anything_is() -> None:
    for devices in range(1, 13):  # the 0-1 principle (Knuth, volume 3, 5.3.4, theorem Z)
        every = (np.arange(2**devices)[None, :] >> np.arange(devices)[:, None] & 1).astype(np.float32)
        sort_columns(every)
        assert np.all(np.diff(every, axis=0) >= 0)


def test_ties_even_counts_and_none_at_all() -> None:
    inf = np.inf
    changes = np.array([[1, 2, inf, 5], [1, 4, inf, inf], [7, inf, inf, inf]], np.float32)
    counts = np.array([3, 2, 0, 1])
    assert median_of(changes.copy(), counts, out=np.empty(4)).tolist() == [1.0, 3.0, 0.0, 5.0]
    trimmed = most_trimmed(counts, 0.3)
    assert trimmed.tolist() == [1, 0, 0, 0]
    assert trimmed_mean_of(changes.copy(), counts, trimmed, out=np.empty(4)).tolist() == [1.0, 3.0, 0.0, 5.0]


@pytest.mark.parametrize(
    ("devices", "share", "hostile"), [(30, 0.1, 3), (5, 0.2, 1), (4, 0.2, 1), (10, 0.2, 2), (3, 0.0, 0), (1, 0.4, 1)]
)
def test_a_share_of_the_devices_is_rounded_up(devices: int, share: float, hostile: int) -> None:
    assert hostile_count(devices, share) == hostile


# -- norms ------------------------------------------------------------------------------------------------------------


def norm(update: Update) -> float:
    return math.sqrt(sum(float(np.square(change.astype(np.float64)).sum()) for change in update.changes.values()))


def test_an_update_with_a_large_norm_is_scaled_down_to_the_limit(
    round_of: Callable[..., Any], maker_of: Callable[..., Any]
) -> None:
    network, _ = round_of("plain", "ordered", 0, 1)
    maker = maker_of(network)
    updates = [maker.update(maker.log("ordered", 2, (0.0,)), device=f"pi-{n}") for n in range(3)]
    for change in updates[1].changes.values():
        change[...] *= 100
    limit = 1.5 * norm(updates[0])
    scaled = []
    for update in updates:
        factor = min(1.0, limit / norm(update))
        changes = {name: (change * np.float64(factor)) for name, change in update.changes.items()}
        scaled.append((update.header.images, changes))
    found = averaged(network, updates, AverageRule("fedavg", clip_norm=limit))
    for name in network.plan.parameters:
        total = sum(images * changes[name] for images, changes in scaled) / sum(images for images, _ in scaled)
        np.testing.assert_allclose(found[name], network.weights[name] + total, rtol=1e-5, atol=1e-6)


def test_the_median_norm_does_not_punish_who_trained_more_of_the_network(
    round_of: Callable[..., Any], maker_of: Callable[..., Any]
) -> None:
    network, _ = round_of("linear", "ordered", 0, 1)
    maker = maker_of(network)
    updates = [
        maker.update(maker.log("ordered", 2, (rate,)), device=f"pi-{n}") for n, rate in enumerate((0.0, 0.6, 0.6, 0.6))
    ]
    for update in updates:
        for change in update.changes.values():
            change[...] = np.sign(change)  # the same for every element that was trained
    clipped, plain = (averaged(network, updates, AverageRule("touch", clip_norm=clip)) for clip in ("median", None))
    assert all(np.array_equal(clipped[name], plain[name]) for name in plain)
    for change in updates[0].changes.values():
        change[...] *= 1000
    clipped = averaged(network, updates, AverageRule("touch", clip_norm="median"))
    for name in plain:
        np.testing.assert_allclose(clipped[name], plain[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", [*ROBUST, "touch", "fedavg"])
@pytest.mark.parametrize("clip", [1e-6, 1e30, "median"])
def test_huge_changes_and_norms_leave_the_model_finite(
    round_of: Callable[..., Any], maker_of: Callable[..., Any], way: Any, clip: Any
) -> None:
    network, _ = round_of("plain", "ordered", 0, 1)
    maker = maker_of(network)
    updates = [maker.update(maker.log("ordered", 1, (0.0,)), device=f"pi-{n}") for n in range(4)]
    for change in updates[0].changes.values():
        change[...] = np.float32(3.3e38)
    with np.errstate(all="raise", under="ignore"):
        found = averaged(network, updates, AverageRule(way, 0.2, clip))
    assert all(np.isfinite(tensor).all() for tensor in found.values())


# -- where updates lie, and how they are written down ------------------------------------------------------------------


@pytest.mark.parametrize("way", [*ROBUST, "touch", "fedavg"])
@pytest.mark.parametrize("written", [("float16", "none"), ("int8", "none"), ("int8", "zstd"), ("float32", "zstd")])
def test_the_average_is_of_what_the_updates_mean(
    round_of: Callable[..., Any], way: Any, written: Any, tmp_path: Path
) -> None:
    network, updates = round_of("grouped", "random", 5, 5)
    readers = []
    for number, update in enumerate(updates):
        path = tmp_path / f"{number}.update"
        path.write_bytes(encode_update(update, *written))
        readers.append(read_update(path, network.plan))
    found = average_updates(network.plan, network.weights, readers, AverageRule(way))
    meant = []
    for reader, update in zip(readers, updates, strict=True):
        changes, begin = {}, 0
        for name, change in update.changes.items():
            decoded = np.empty(change.size, np.float32)
            changes[name] = reader.read(begin, begin + change.size, decoded).reshape(change.shape)
            begin += change.size
        meant.append(Update(update.header, changes, {}, update.kept, update.kept_images))
    expected = averaged(network, meant, AverageRule(way))
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_pieces_do_not_show(round_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network, updates = round_of("linear", "random", 2, 5)
    whole = {way: averaged(network, updates, AverageRule(way)) for way in ("touch", "median", "trimmed_mean")}
    monkeypatch.setattr("distreal_edge.aggregator.averaging._ELEMENTS", 7)
    monkeypatch.setattr("distreal_edge.aggregator.averaging._FEWEST_ELEMENTS", 7)
    monkeypatch.setattr("distreal_edge.aggregator.robust._COLUMNS_BYTES", 4)
    for way, expected in whole.items():
        found = averaged(network, updates, AverageRule(way))  # type: ignore[arg-type]
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


# -- batch norm ------------------------------------------------------------------------------------------------------


def test_one_hostile_device_cannot_move_the_statistics_out_of_the_range_of_the_honest(
    network_of: Callable[..., Network], maker_of: Callable[..., Any]
) -> None:
    network = network_of("residual")
    maker = maker_of(network)
    honest = [(32, maker.update([], statistics_images=32).statistics) for _ in range(4)]
    bad = (32, {name: np.full(shape, 1e30, np.float32) for name, shape in network.plan.statistics.items()})
    pooled = pool_statistics(network.plan, [*honest, bad], robust=True)
    for name in network.plan.statistics:
        each = np.array([statistics[name] for _, statistics in honest])
        assert np.all(pooled[name] <= each.max(axis=0) + 16)
        assert np.all(pooled[name] >= each.min(axis=0))
    alike = [honest[0]] * 3
    robust, plain = (pool_statistics(network.plan, alike, robust=robust) for robust in (True, False))
    for name in network.plan.statistics:
        np.testing.assert_allclose(robust[name], plain[name], rtol=0.02)
