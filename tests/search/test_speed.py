from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

import distreal_edge as de
from distreal_edge.data import Batches, Dataset
from distreal_edge.dropout import Draws
from distreal_edge.engine import Engine
from distreal_edge.errors import ConfigError, DataError
from distreal_edge.network import Network
from distreal_edge.search.families import carried_groups
from distreal_edge.search.speed import (
    DIVERGED,
    HeldIn,
    MixedRates,
    Recipe,
    full_loss,
    hold_out,
    recovered_losses,
    take_snapshots,
    training_loss,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPE = Recipe(batch=8)
COUNTS = (3, 2)


@pytest.fixture
def data(dataset: Dataset) -> HeldIn:
    return hold_out(dataset, validation=24, calibration=16, seed=0)


def plain_loop(
    network: Network, train: Dataset, counts: Sequence[int], recipe: Recipe, *, steps: int, seed: int
) -> tuple[list[float], list[dict[str, Any]]]:
    """Train without the search, and return the losses and the weights after each mini-batch."""
    engine = Engine(network, seed=(seed, 3))
    batches = Batches(train, recipe.batch, np.random.default_rng((seed, 4)))
    draws = Draws(recipe.draw, network.plan.sizes, (seed, 5), round_number=seed)
    losses, weights = [], []
    for _ in range(steps):
        images, labels = next(batches)
        settings = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        losses.append(engine.step(images, labels, draws(counts), **settings))
        weights.append({name: tensor.copy() for name, tensor in engine.weights.items()})
    return losses, weights


@pytest.mark.parametrize("draw", ["ordered", "random", "rolling", "sticky"])
def test_the_training_loss_is_that_of_a_plain_loop(network: Network, data: HeldIn, draw: str) -> None:
    recipe = msgspec.structs.replace(RECIPE, draw=draw)
    expected, _ = plain_loop(network, data.train, COUNTS, recipe, steps=5, seed=3)
    assert training_loss(network, COUNTS, data, recipe, steps=5, seed=3) == np.mean(expected[2:])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(network: Network, data: HeldIn) -> None:
    def losses(seed: int) -> tuple[float, tuple[float, float]]:
        screened = training_loss(network, COUNTS, data, RECIPE, steps=4, seed=seed)
        return screened, recovered_losses(network, COUNTS, data, RECIPE, steps=4, seed=seed, recovery=3)

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_training_leaves_the_snapshot_as_it_was(network: Network, data: HeldIn) -> None:
    before = network.to_bytes()
    training_loss(network, COUNTS, data, RECIPE, steps=3, seed=1)
    recovered_losses(network, COUNTS, data, RECIPE, steps=3, seed=1, recovery=3)
    full_loss(network, data)
    assert network.to_bytes() == before


def test_every_vector_sees_the_same_mini_batches(
    network: Network, data: HeldIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    step = Engine.step

    def noted(engine: Engine, images: Any, labels: Any, subset: Any, **settings: Any) -> float:
        seen.append(images.tobytes() + labels.tobytes())
        return step(engine, images, labels, subset, **settings)

    monkeypatch.setattr(Engine, "step", noted)
    drawn = []
    for counts in ((1, 1), (2, 5), (4, 6)):
        seen.clear()
        recovered_losses(network, counts, data, RECIPE, steps=12, seed=1, recovery=3)
        drawn.append(list(seen))
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(drawn[0]) == 15
    seen.clear()
    recovered_losses(network, (), data, RECIPE, steps=12, seed=1, recovery=3)
    assert seen == drawn[0][12:]


def averaged(network: Network, weights: Sequence[dict[str, Any]]) -> Network:
    mean = {name: np.mean([np.float64(one[name]) for one in weights], axis=0) for name in weights[0]}
    return Network(network.plan, {name: tensor.astype(np.float32) for name, tensor in mean.items()})


def test_the_full_networks_loss_after_a_vector_is_that_of_two_plain_loops(network: Network, data: HeldIn) -> None:
    steps, recovery = 11, 6
    losses, weights = plain_loop(network, data.train, COUNTS, RECIPE, steps=steps, seed=1)
    # The last one, every fifth before it, and none of the first half.
    middle = averaged(network, [weights[5], weights[10]])
    gentle = msgspec.structs.replace(RECIPE, lr=0.4 * RECIPE.lr)
    _, weights = plain_loop(middle, data.train, network.plan.sizes, gentle, steps=recovery, seed=1 + 2**40)
    expected = full_loss(averaged(network, [weights[5]]), data)
    found, own = recovered_losses(network, COUNTS, data, RECIPE, steps=steps, seed=1, recovery=recovery)
    assert own == np.mean(losses)
    assert found == pytest.approx(expected, rel=1e-6)


def test_no_counts_train_nothing_but_the_recovery(network: Network, data: HeldIn) -> None:
    gentle = msgspec.structs.replace(RECIPE, lr=0.4 * RECIPE.lr)
    _, weights = plain_loop(network, data.train, network.plan.sizes, gentle, steps=4, seed=1 + 2**40)
    loss, own = recovered_losses(network, (), data, RECIPE, steps=50, seed=1, recovery=4)
    assert loss == full_loss(averaged(network, [weights[3]]), data)
    assert own == 0.0


def test_the_full_network_learns_what_it_learns_without_a_search(network: Network, data: HeldIn) -> None:
    losses, _ = plain_loop(network, data.train, network.plan.sizes, RECIPE, steps=60, seed=2)
    assert training_loss(network, network.plan.sizes, data, RECIPE, steps=60, seed=2) == np.mean(losses[30:])
    trained, _ = recovered_losses(network, network.plan.sizes, data, RECIPE, steps=60, seed=2, recovery=5)
    untrained, _ = recovered_losses(network, (), data, RECIPE, steps=60, seed=2, recovery=5)
    assert trained < untrained - 0.1


def test_the_loss_is_the_mean_cross_entropy_with_statistics_measured_anew(network: Network, data: HeldIn) -> None:
    network.weights["bn.running_mean"][...] = 100.0  # what is not looked at
    engine = Engine(network)
    for name, statistic in engine.measure_statistics([data.calibration.images]).items():
        engine.weights[name][...] = statistic
    scores = np.float64(engine.predict(data.validation.images))
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    right = chances[np.arange(len(scores)), data.validation.labels]
    assert full_loss(network, data) == pytest.approx(-np.log(right).mean())


def test_parts_of_a_dataset_are_disjoint_and_cover_it(dataset: Dataset) -> None:
    images = np.arange(90, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 6, 6), np.uint8)
    marked = Dataset(images, dataset.labels, 3, name="marked")
    held = hold_out(marked, validation=24, calibration=16, seed=5)
    parts = [part.images[:, 0, 0, 0].tolist() for part in (held.validation, held.calibration, held.train)]
    assert [len(part) for part in parts] == [24, 16, 50]
    assert sorted(number for part in parts for number in part) == list(range(90))
    again = hold_out(marked, validation=24, calibration=16, seed=5)
    assert np.array_equal(again.train.images, held.train.images)
    other = hold_out(marked, validation=24, calibration=16, seed=6)
    assert not np.array_equal(other.train.images, held.train.images)


def test_images_enough_to_train_on_must_be_left(dataset: Dataset) -> None:
    assert len(hold_out(dataset, validation=44, calibration=44, seed=0).train) == 2
    with pytest.raises(DataError, match="90 images are too few to set aside 45 for validation and 44 for batch-norm"):
        hold_out(dataset, validation=45, calibration=44, seed=0)


@pytest.mark.parametrize("lr", [1e3, 1e8, 1e30])
def test_a_training_that_diverges_is_worth_nothing_and_no_error(network: Network, data: HeldIn, lr: float) -> None:
    recipe = Recipe(batch=8, lr=lr)
    screened = training_loss(network, COUNTS, data, recipe, steps=30, seed=1)
    loss, own = recovered_losses(network, COUNTS, data, recipe, steps=30, seed=1, recovery=10)
    assert screened > 3.0
    assert loss > 1.0
    assert np.isfinite([screened, loss, own]).all()
    if lr > 1e20:
        assert (screened, loss, own) == (DIVERGED, DIVERGED, DIVERGED)


def test_snapshots_of_a_training_that_diverges_ask_for_a_lower_rate(network: Network, data: HeldIn) -> None:
    with pytest.raises(ConfigError, match=r"diverged within 9 mini-batches at a learning rate of 1e\+30; give the sea"):
        take_snapshots(network, data, Recipe(batch=8, lr=1e30), (9,), seed=1)


def test_mixed_mini_batches_have_every_shape_and_keep_a_filter_of_each_group() -> None:
    network = de.zoo.resnet20(classes=10)
    sizes = network.plan.sizes
    mixed, rng = MixedRates(network.plan), np.random.default_rng(0)
    drawn = np.array([mixed(rng) for _ in range(4000)])
    assert (drawn.min(axis=0) == 1).all()
    assert (drawn.max(axis=0) == sizes).all()
    shares = drawn / sizes
    carried = sorted(carried_groups(network.plan))
    inner = [group for group in range(len(sizes)) if group not in carried]
    # Whole streams with thin blocks are as usual as thin streams with whole blocks.
    whole_streams = np.mean((shares[:, carried].mean(axis=1) > 0.9) & (shares[:, inner].mean(axis=1) < 0.5))
    whole_blocks = np.mean((shares[:, inner].mean(axis=1) > 0.9) & (shares[:, carried].mean(axis=1) < 0.5))
    assert whole_streams > 0.01
    assert whole_blocks > 0.01
    assert 0.5 < whole_streams / whole_blocks < 2.0
    # Groups of one kind go together, of different kinds less so, and none exactly.
    related = np.corrcoef(shares.T)
    assert 0.6 < related[inner[0], inner[1]] < 0.98
    assert 0.0 < related[inner[0], carried[0]] < related[inner[0], inner[1]] - 0.2
    assert abs(shares[:, inner[0]].mean() - shares[:, inner[-1]].mean()) < 0.05


def test_snapshots_are_one_training_looked_at_several_times(network: Network, data: HeldIn) -> None:
    steps: list[int] = []
    early, late = take_snapshots(network, data, RECIPE, (3, 7), seed=1, done=steps.append)
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    (alone,) = take_snapshots(network, data, RECIPE, (3,), seed=1)
    assert alone.to_bytes() == early.to_bytes() != late.to_bytes()
    (other,) = take_snapshots(network, data, RECIPE, (3,), seed=2)
    assert other.to_bytes() != early.to_bytes()
