"""Convergence speed, defined so that anybody can repeat it: what a vector's mini-batches do for the full network.

From a *snapshot* of a mixed-rate training some mini-batches are trained with one dropout vector. Screening looks at
their training loss; confirmation at the full network's validation loss after them. Batches, draws and augmentation are
the same for every vector, so that differences are what the vectors make. `docs/search.md` says why it is measured so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import numpy as np

from distreal_edge.data import Batches
from distreal_edge.dropout import Draws
from distreal_edge.engine import Engine, mean_cross_entropy
from distreal_edge.errors import ConfigError, DataError
from distreal_edge.network import Network
from distreal_edge.search.families import carried_groups
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset
    from distreal_edge.network import Plan

__all__ = [
    "DIVERGED",
    "HeldIn",
    "Horizon",
    "MixedRates",
    "Recipe",
    "full_loss",
    "hold_out",
    "recovered_losses",
    "take_snapshots",
    "training_loss",
]

DIVERGED: Final = 100.0
"""The loss of a training that ended in infinities: worse than any other."""
_OTHER_SEEDS: Final = 2**40
_GENTLE: Final = 0.4
"""The learning rate after a vector's mini-batches, as a share of theirs: enough to settle, little noise."""
_AVERAGED_EVERY: Final = 5
"""Weights of every fifth mini-batch go into the average: neighbours are too much alike to say more."""
_STATISTICS_BATCH: Final = 64
_NARROWEST: Final = 0.25
"""The least width of a mixed mini-batch; with exponents of up to 4.5 groups are thinned down to a single filter."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the search trains: the draw policy, and SGD as devices do it, with momentum from zero."""

    draw: str = "ordered"
    batch: Annotated[int, msgspec.Meta(ge=2, le=4096)] = 32
    lr: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 0.05
    momentum: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 5e-4

    def gentle(self) -> Recipe:
        """Return the recipe of the mini-batches that settle the full network."""
        return msgspec.structs.replace(self, lr=self.lr * _GENTLE)


class Horizon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a vector trains, and from how many seeds: a seed stands for other batches, draws and augmentation."""

    steps: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)]
    seeds: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31)], ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True, eq=False)
class HeldIn:
    """A dataset in three parts: to train on, to measure the full network's loss on, and its batch-norm statistics."""

    train: Dataset
    validation: Dataset
    calibration: Dataset


def hold_out(dataset: Dataset, *, validation: int, calibration: int, seed: int) -> HeldIn:
    """Set images aside at random; raise `DataError` when less than two images would be left to train on."""
    if len(dataset) < validation + calibration + 2:
        raise DataError(
            f"dataset {dataset.name}: {len(dataset)} images are too few to set aside {validation} for validation and "
            f"{calibration} for batch-norm statistics; give the search more images, or set fewer aside"
        )
    order = np.random.default_rng((seed, 1)).permutation(len(dataset))
    parts = np.split(order, [validation, validation + calibration])
    return HeldIn(dataset.take(parts[2]), dataset.take(parts[0]), dataset.take(parts[1]))


class MixedRates:
    """Draw the counts of one mini-batch of a mixed-rate training: a width, and around it a shape.

    Group `g` keeps the share `width ** exponent_g`. The width is uniform in 1/4..1. The exponent is the product of
    three factors: one for all carried groups and one for all inner groups, each uniform in 0..2, so that whole streams
    and thin blocks are as usual as the other way round; one that rises or falls with depth by up to a half; and the
    group's own, uniform in 1/2..3/2. A shape that hardly ever occurs here would have to be got used to before it can
    show what it is worth.
    """

    def __init__(self, plan: Plan) -> None:
        carried = carried_groups(plan)
        self._sizes = plan.sizes
        self._carried = np.array([group in carried for group in range(len(plan.sizes))])
        self._depth = np.linspace(-1.0, 1.0, len(plan.sizes))

    def __call__(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw once."""
        width = rng.uniform(_NARROWEST, 1.0)
        of_carried, of_inner = rng.uniform(0.0, 2.0, 2)
        tilt = 1.0 + rng.uniform(-0.5, 0.5) * self._depth
        own = rng.uniform(0.5, 1.5, len(self._sizes))
        exponents = np.where(self._carried, of_carried, of_inner) * tilt * own
        shares = width**exponents
        return tuple(max(1, round(share * size)) for share, size in zip(shares.tolist(), self._sizes, strict=True))


def take_snapshots(
    network: Network,
    data: HeldIn,
    recipe: Recipe,
    at: Sequence[int],
    *,
    seed: int,
    threads: int = 1,
    done: Callable[[int], None] = lambda _step: None,
) -> tuple[Network, ...]:
    """Train a network at mixed rates and return it as it is after each of the numbers of mini-batches in `at`.

    `done(step)` is called after each mini-batch. Raises `ConfigError` when the training diverges.
    """
    snapshots: list[Network] = []
    training = _Training(network, data.train, recipe, seed, threads)
    rng = np.random.default_rng((seed, 2))
    mixed = MixedRates(network.plan)
    for step in range(1, max(at) + 1):
        training.step(mixed(rng))
        if step in at:
            if not _are_finite(training.engine.weights):
                raise ConfigError(
                    f"training at mixed rates diverged within "
                    f"{count_of(step, 'mini-batch', 'mini-batches')} at a learning rate of {recipe.lr:g}; "
                    "give the search a lower one"
                )
            snapshots.append(training.network())
        done(step)
    return tuple(snapshots)


def full_loss(network: Network, data: HeldIn, threads: int = 1) -> float:
    """Return the full network's mean cross-entropy on the validation images, its statistics measured anew."""
    engine = Engine(network)
    batches = np.array_split(data.calibration.images, max(1, len(data.calibration) // _STATISTICS_BATCH))
    for name, statistic in engine.measure_statistics(batches, threads=threads).items():
        engine.weights[name][...] = statistic
    loss = mean_cross_entropy(engine.predict(data.validation.images, threads=threads), data.validation.labels)
    return loss if np.isfinite(loss) else DIVERGED


def training_loss(
    snapshot: Network, counts: Sequence[int], data: HeldIn, recipe: Recipe, *, steps: int, seed: int, threads: int = 1
) -> float:
    """Return the mean training loss, in nats, of the second half of `steps` mini-batches that keep these counts.

    It is the subnetwork's own loss, and cheap: what a search screens by. The first half is for getting used to the
    vector.
    """
    training = _Training(snapshot, data.train, recipe, seed, threads)
    losses = [training.step(counts) for _ in range(steps)]
    loss = float(np.mean(losses[steps // 2 :]))
    return loss if np.isfinite(loss) else DIVERGED


def recovered_losses(
    snapshot: Network,
    counts: Sequence[int],
    data: HeldIn,
    recipe: Recipe,
    *,
    steps: int,
    seed: int,
    recovery: int,
    threads: int = 1,
) -> tuple[float, float]:
    """Return the full network's validation loss after `steps` mini-batches that keep these counts, and their own loss.

    Both in nats; the second is the mean training loss of those mini-batches, 0 when there are none. The weights of the
    second half of them are averaged, as a round averages them; from there the full network trains for `recovery`
    mini-batches that are the same for all vectors, whose second half is averaged again. No counts: nothing is trained
    but these. No recovery: the network is judged as the vector left it.
    """
    network: Network | None = snapshot
    own_loss = 0.0
    if counts:
        network, own_loss = _averaged(_Training(snapshot, data.train, recipe, seed, threads), counts, steps)
    if network is not None and recovery:
        last = _Training(network, data.train, recipe.gentle(), seed + _OTHER_SEEDS, threads)
        network, _ = _averaged(last, network.plan.sizes, recovery)
    return (DIVERGED, DIVERGED) if network is None else (full_loss(network, data, threads), own_loss)


def _averaged(training: _Training, counts: Sequence[int], steps: int) -> tuple[Network | None, float]:
    # None for a training that diverged: no network holds infinities.
    losses: list[float] = []
    total: dict[str, NDArray[np.float64]] = {}
    averaged = 0
    for step in range(1, steps + 1):
        losses.append(training.step(counts))
        if step == steps or (2 * step > steps and (steps - step) % _AVERAGED_EVERY == 0):
            averaged += 1
            with np.errstate(invalid="ignore"):  # infinities of both signs
                for name, tensor in training.engine.weights.items():
                    total[name] = total[name] + tensor if name in total else tensor.astype(np.float64)
    mean = {name: (tensor / averaged).astype(np.float32) for name, tensor in total.items()}
    return (training.network(mean) if _are_finite(mean) else None), float(np.mean(losses))


def _are_finite(weights: Mapping[str, NDArray[np.float32]]) -> bool:
    return all(bool(np.isfinite(tensor).all()) for tensor in weights.values())


class _Training:
    """One network in training; everything random follows from the seed, and nothing of it from what is dropped."""

    def __init__(self, network: Network, train: Dataset, recipe: Recipe, seed: int, threads: int) -> None:
        self.engine = Engine(network, seed=(seed, 3))
        self._plan = network.plan
        self._recipe = recipe
        self._threads = threads
        self._batches = Batches(train, recipe.batch, np.random.default_rng((seed, 4)))
        self._draws = Draws(recipe.draw, network.plan.sizes, (seed, 5), round_number=seed)

    def step(self, counts: Sequence[int]) -> float:
        images, labels = next(self._batches)
        return self.engine.step(
            images,
            labels,
            self._draws(counts),
            lr=self._recipe.lr,
            momentum=self._recipe.momentum,
            weight_decay=self._recipe.weight_decay,
            threads=self._threads,
        )

    def network(self, weights: Mapping[str, NDArray[np.float32]] | None = None) -> Network:
        """Return a network of these weights, or of a copy of those that there are now."""
        if weights is None:
            weights = {name: tensor.copy() for name, tensor in self.engine.weights.items()}
        return Network(self._plan, weights)
