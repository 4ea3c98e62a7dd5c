"""The engine: one training step over a subset of the filters, and passes over the full network.

`docs/engine.md` writes the step down as formulas, down to the order of random draws, so that every backend does the
same. What is here is common to all backends: checking what comes in, augmentation, normalisation, bounded memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.dropout import Subset
from distreal_edge.errors import ConfigError, DataError
from distreal_edge.network.operations import BatchNorm
from distreal_edge.network.preprocessing import augment, normalise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from distreal_edge.network import Network, Plan
    from distreal_edge.network.reference import ReferenceExecutor

__all__ = ["BACKENDS", "Engine"]

BACKENDS = ("reference", "native")

_MAXIMUM_PREDICTED_AT_ONCE = 256
_MAXIMUM_VALUE_ELEMENTS = 2**24
"""Elements of the largest value of a forward pass over several images: 64 MiB."""


class Engine:
    """Train one network, each mini-batch over a subset of its filters.

    The engine owns a copy of the network's weights and the optimiser's momentum, and its memory does not grow. It is
    deterministic: the same network, seed, calls and number of threads give the same bits on the same machine. One
    engine is used by one thread at a time; several engines do not disturb each other, except that the reference
    backend's number of threads is a setting of the whole process.
    """

    def __init__(self, network: Network, backend: str = "reference", *, seed: int | tuple[int, ...] = 0) -> None:
        """Copy the network's weights; raise `ConfigError` when there is no such backend here.

        `backend` "reference" computes with PyTorch. `seed`, one number or several that are zero or more, starts the
        generator of augmentation and element-wise dropout.
        """
        _check_seed(seed)
        self._plan: Plan = network.plan
        self._weights = {name: np.array(tensor, order="C") for name, tensor in network.weights.items()}
        self._executor = _executor(backend, self._plan, self._weights)
        self._rng = np.random.default_rng(seed)

    @property
    def weights(self) -> Mapping[str, NDArray[np.float32]]:
        """The engine's own arrays by PyTorch's names, trainable tensors and batch-norm statistics alike.

        They are live: a step changes them, and what is written into one (`engine.weights[name][...] = tensor`) is what
        the next step starts from.
        """
        return MappingProxyType(self._weights)

    def reset_momentum(self) -> None:
        """Set the optimiser's momentum to zero, as at the start of every round."""
        self._executor.reset_momentum()

    def step(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32],
        labels: NDArray[np.int64],
        subset: Subset,
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        threads: int = 1,
    ) -> float:
        """Train the surviving filters on one mini-batch and return its mean softmax cross-entropy before the update.

        `images` are uint8 or float32 (0..1) `[N, C, H, W]`, `labels` int64 `[N]`. Weights outside the subset keep
        every bit of their value and of their momentum; batch-norm statistics are never touched. A step that diverges
        returns NaN or infinity. Raises `DataError` for images, labels or a subset that do not fit the network and
        `ConfigError` for settings out of range; nothing has changed then.
        """
        _check_images(self._plan, images, "images")
        _check_labels(self._plan, labels, len(images))
        _check_batch_norm(self._plan, len(images), "images")
        _check_subset(self._plan, subset)
        settings = (
            _checked_number("lr", lr, math.inf),
            _checked_number("momentum", momentum, 1.0),
            _checked_number("weight_decay", weight_decay, math.inf),
        )
        self._executor.use_threads(_checked_threads(threads))
        augmented = augment(images, self._plan.preprocessing, self._rng)
        return self._executor.step(self._prepared(augmented), labels.copy(), subset, *settings, self._rng)

    def predict(self, images: NDArray[np.uint8] | NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float32]:
        """Return the full network's class scores, float32 `[N, classes]`, from its batch-norm statistics.

        `images` are as in `step`, any number of them: they are worked on a few at a time, so that memory is bounded.
        """
        _check_images(self._plan, images, "images")
        self._executor.use_threads(_checked_threads(threads))
        largest = max(math.prod(shape) for shape in self._plan.shapes.values())
        at_once = max(1, min(_MAXIMUM_PREDICTED_AT_ONCE, _MAXIMUM_VALUE_ELEMENTS // largest))
        scores = np.empty((len(images), self._plan.classes), dtype=np.float32)
        for start in range(0, len(images), at_once):
            part = slice(start, start + at_once)
            scores[part] = self._executor.predict(self._prepared(images[part]))
        return scores

    def measure_statistics(
        self, batches: Iterable[NDArray[np.uint8] | NDArray[np.float32]], *, threads: int = 1
    ) -> dict[str, NDArray[np.float32]]:
        """Return the full network's batch-norm statistics over these batches of images; the engine does not change.

        Every batch goes through the full network, not augmented and without element-wise dropout, normalised by its
        own statistics. Means and variances are then pooled over all images: the mean, and the unbiased variance,
        of every value that a batch norm saw. A network without batch norm has no statistics: the result is empty.
        """
        self._executor.use_threads(_checked_threads(threads))
        if not self._plan.statistics:
            return {}
        pooled: dict[str, _Moments] = {}
        for number, images in enumerate(batches):
            where = f"batch {number} of images"
            _check_images(self._plan, images, where)
            _check_batch_norm(self._plan, len(images), where)
            for name, (mean, variance) in self._executor.batch_moments(self._prepared(images)).items():
                count = len(images) * math.prod(self._plan.shapes[name][1:])
                batch = _Moments(count, mean, variance * count)
                pooled[name] = pooled[name].merge(batch) if name in pooled else batch
        if not pooled:
            message = "there are no images to measure batch-norm statistics on; give at least one batch"
            raise DataError(message)
        statistics: dict[str, NDArray[np.float32]] = {}
        for name, moments in pooled.items():
            statistics[f"{name}.running_mean"] = moments.mean.astype(np.float32)
            statistics[f"{name}.running_var"] = (moments.squares / (moments.count - 1)).astype(np.float32)
        return statistics

    def _prepared(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        return np.ascontiguousarray(normalise(images, self._plan.preprocessing))


@dataclass(frozen=True, slots=True)
class _Moments:
    """Count, mean and sum of squared deviations from the mean, per channel, in float64."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    def merge(self, other: _Moments) -> _Moments:
        """Return the moments of both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        return _Moments(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart**2 * (self.count * other.count / count),
        )


def _executor(backend: str, plan: Plan, weights: dict[str, NDArray[np.float32]]) -> ReferenceExecutor:
    if backend == "native":
        message = 'this version has no native training yet; use backend="reference"'
        raise ConfigError(message)
    if backend not in BACKENDS:
        message = f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}"
        raise ConfigError(message)
    try:
        from distreal_edge.network.reference import ReferenceExecutor  # noqa: PLC0415 - torch may be missing
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torch":
            raise
        message = "the reference backend needs PyTorch, which is not installed: pip install 'distreal-edge[torch]'"
        raise ConfigError(message) from None
    return ReferenceExecutor(plan, weights)


def _check_seed(seed: object) -> None:
    numbers = seed if isinstance(seed, tuple) and seed else (seed,)
    if not all(_is_whole(number) and number >= 0 for number in numbers):
        message = f"the seed must be a whole number of 0 or more, or a tuple of them; got {seed!r}"
        raise ConfigError(message)


def _check_images(plan: Plan, images: object, where: str) -> None:
    expected = "uint8 or float32 [N, {}, {}, {}]".format(*plan.input_shape)
    if not isinstance(images, np.ndarray):
        message = f"{where} must be a numpy array, {expected}; got {type(images).__name__}"
        raise DataError(message)
    if images.dtype not in (np.uint8, np.float32):
        message = f"{where} must be {expected}; got {images.dtype}: convert with astype"
        raise DataError(message)
    if images.ndim != 4 or images.shape[1:] != plan.input_shape:
        message = f"{where} must be {expected}; got shape {list(images.shape)}"
        raise DataError(message)
    if len(images) == 0:
        message = f"{where}: there are none; give at least one image"
        raise DataError(message)
    if images.dtype == np.float32 and not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
        message = f"{where}: image {bad} holds NaN or infinity; leave it out or repair it"
        raise DataError(message)


def _check_labels(plan: Plan, labels: object, count: int) -> None:
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64:
        kind = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        message = f"labels must be a numpy array, int64 [N]; got {kind}"
        raise DataError(message)
    if labels.shape != (count,):
        message = f"labels must be int64 [{count}], one for each image; got shape {list(labels.shape)}"
        raise DataError(message)
    wrong = np.flatnonzero((labels < 0) | (labels >= plan.classes))
    if len(wrong):
        message = f"label {wrong[0]} is {labels[wrong[0]]}, but the network's classes are 0..{plan.classes - 1}"
        raise DataError(message)


def _check_batch_norm(plan: Plan, count: int, where: str) -> None:
    # The variance of a single value is zero, whatever the image: PyTorch refuses it too.
    for operation in plan.operations:
        if isinstance(operation, BatchNorm) and count * math.prod(plan.shapes[operation.name][1:]) == 1:
            message = (
                f"{where}: batch norm {operation.name!r} would see a single value per channel; "
                "give at least two images at a time"
            )
            raise DataError(message)


def _check_subset(plan: Plan, subset: object) -> None:
    if not isinstance(subset, Subset):
        message = f"the subset must be a Subset, got {type(subset).__name__}; draw one with network.draw"
        raise DataError(message)
    subset.check(plan.sizes)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked_number(name: str, value: float, below: float) -> float:
    known = _is_whole(value) or isinstance(value, (float, np.floating))
    if not known or not 0.0 <= value < below:
        limit = "finite" if math.isinf(below) else f"below {below:g}"
        message = f"{name} must be a number, 0 or more and {limit}; got {value!r}"
        raise ConfigError(message)
    return float(value)


def _checked_threads(threads: int) -> int:
    if not _is_whole(threads) or threads < 1:
        message = f"threads must be a whole number of 1 or more; got {threads!r}"
        raise ConfigError(message)
    return int(threads)
