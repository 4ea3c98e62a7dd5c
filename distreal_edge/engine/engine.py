"""The engine's public face: what every backend has in common."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.engine.checks import (
    check_batch_norm,
    check_images,
    check_seed,
    check_subset,
    checked_labels,
    checked_number,
    checked_threads,
)
from distreal_edge.engine.moments import Moments
from distreal_edge.engine.native import NativeBackend
from distreal_edge.engine.reference import ReferenceBackend
from distreal_edge.errors import ConfigError, DataError, DistrealError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from distreal_edge._native import Cancellation
    from distreal_edge.dropout import Subset
    from distreal_edge.network import Network, Plan

__all__ = ["BACKENDS", "Engine"]

BACKENDS = ("native", "reference")

_MAXIMUM_PREDICTED_AT_ONCE = 256
_MAXIMUM_VALUE_ELEMENTS = 2**24
"""Elements of the largest value of a forward pass over several images: 64 MiB."""


class Engine:
    """Train one network, each mini-batch over a subset of its filters.

    The engine owns a copy of the network's weights and the optimiser's momentum, and its memory does not grow. It is
    deterministic: the same network, seed, calls and number of threads give the same bits on the same machine. One
    engine is used by one thread at a time; several engines do not disturb each other, except that the reference
    backend's number of threads is a setting of the whole process.

    Steps and passes that were given a `Cancellation` end early with `CancellationError` when any thread calls its
    `cancel`. Weights, momentum and the generator of augmentation and dropout are then, bit for bit, as before the call.
    """

    def __init__(self, network: Network, backend: str = "native", *, seed: int | tuple[int, ...] = 0) -> None:
        """Copy the network's weights; raise `ConfigError` when there is no such backend here.

        `backend` "native" is compiled code; "reference" computes with PyTorch, which it needs. `seed`, one number or
        several that are zero or more, starts the generator of augmentation and element-wise dropout.
        """
        check_seed(seed)
        self._plan: Plan = network.plan
        self._weights = {name: np.array(tensor, order="C") for name, tensor in network.weights.items()}
        self._backend = _backend(backend, self._plan, self._weights)
        self._rng = np.random.default_rng(seed)

    @property
    def instruction_set(self) -> str | None:
        """The instruction set that the native backend computes with; None where PyTorch chooses."""
        return self._backend.instruction_set

    @property
    def arena_bytes(self) -> int | None:
        """The bytes that the native backend holds beside weights and momentum: the most of all steps and passes so far.

        None where PyTorch allocates.
        """
        return self._backend.arena_bytes

    @property
    def weights(self) -> Mapping[str, NDArray[np.float32]]:
        """The engine's own arrays by PyTorch's names, trainable tensors and batch-norm statistics alike.

        They are live: a step changes them, and what is written into one (`engine.weights[name][...] = tensor`) is what
        the next step starts from.
        """
        return MappingProxyType(self._weights)

    def reset_momentum(self) -> None:
        """Set the optimiser's momentum to zero, as at the start of every round."""
        self._backend.reset_momentum()

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
        cancellation: Cancellation | None = None,
    ) -> float:
        """Train the surviving filters on one mini-batch and return its mean softmax cross-entropy before the update.

        `images` are uint8 or float32 (0..1) `[N, C, H, W]`, `labels` int64 `[N]`. Weights outside the subset keep
        every bit of their value and of their momentum; batch-norm statistics are never touched. A step that diverges
        returns NaN or infinity. Raises `DataError` for images, labels or a subset that do not fit the network and
        `ConfigError` for settings out of range, or a batch that does not fit into memory, and `CancellationError` soon
        after `cancellation` was cancelled; nothing has changed then.
        """
        check_images(self._plan, images, "images")
        labels = checked_labels(self._plan, labels, len(images))
        check_batch_norm(self._plan, len(images), "images")
        check_subset(self._plan, subset)
        state = self._rng.bit_generator.state
        try:
            return self._backend.step(
                images,
                labels,
                subset,
                self._rng,
                lr=checked_number("lr", lr),
                momentum=checked_number("momentum", momentum, 1.0),
                weight_decay=checked_number("weight_decay", weight_decay),
                threads=checked_threads(threads),
                cancellation=cancellation,
            )
        except DistrealError:
            self._rng.bit_generator.state = state  # what has changed nothing has drawn nothing
            raise

    def predict(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32],
        *,
        threads: int = 1,
        cancellation: Cancellation | None = None,
    ) -> NDArray[np.float32]:
        """Return the full network's class scores, float32 `[N, classes]`, from its batch-norm statistics.

        `images` and `cancellation` are as in `step`. There may be any number of images: they are worked on a few at a
        time, so that memory is bounded.
        """
        check_images(self._plan, images, "images")
        threads = checked_threads(threads)
        largest = max(math.prod(shape) for shape in self._plan.shapes.values())
        at_once = max(1, min(_MAXIMUM_PREDICTED_AT_ONCE, _MAXIMUM_VALUE_ELEMENTS // largest))
        scores = np.empty((len(images), self._plan.classes), dtype=np.float32)
        for start in range(0, len(images), at_once):
            part = slice(start, start + at_once)
            scores[part] = self._backend.predict(images[part], threads, cancellation)
        return scores

    def measure_statistics(
        self,
        batches: Iterable[NDArray[np.uint8] | NDArray[np.float32]],
        *,
        threads: int = 1,
        cancellation: Cancellation | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the full network's batch-norm statistics over these batches of images; the engine does not change.

        Every batch goes through the full network, not augmented and without element-wise dropout, normalised by its
        own statistics. Means and variances are then pooled over all images: the mean, and the unbiased variance,
        of every value that a batch norm saw. A network without batch norm has no statistics: the result is empty.
        `cancellation` is as in `step`.
        """
        threads = checked_threads(threads)
        if not self._plan.statistics:
            return {}
        pooled: dict[str, Moments] = {}
        for number, images in enumerate(batches):
            where = f"batch {number} of images"
            check_images(self._plan, images, where)
            check_batch_norm(self._plan, len(images), where)
            for name, (mean, variance) in self._backend.batch_moments(images, threads, cancellation).items():
                count = len(images) * math.prod(self._plan.shapes[name][1:])
                batch = Moments(count, mean, variance * count)
                pooled[name] = pooled[name].merge(batch) if name in pooled else batch
        if not pooled:
            message = "there are no images to measure batch-norm statistics on; give at least one batch"
            raise DataError(message)
        statistics: dict[str, NDArray[np.float32]] = {}
        for name, moments in pooled.items():
            statistics[f"{name}.running_mean"] = moments.mean.astype(np.float32)
            statistics[f"{name}.running_var"] = (moments.squares / (moments.count - 1)).astype(np.float32)
        return statistics


def _backend(name: str, plan: Plan, weights: dict[str, NDArray[np.float32]]) -> NativeBackend | ReferenceBackend:
    if name == "native":
        return NativeBackend(plan, weights)
    if name == "reference":
        return ReferenceBackend(plan, weights)
    message = f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}"
    raise ConfigError(message)
