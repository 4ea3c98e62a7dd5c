"""Refuse what does not fit the network, before any backend sees it: what is wrong, where, and what to do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distreal_edge.dropout import Subset
from distreal_edge.errors import CancellationError, ConfigError, DataError
from distreal_edge.network.operations import BatchNorm

if TYPE_CHECKING:
    from distreal_edge._native import Cancellation
    from distreal_edge.network import Plan

__all__ = [
    "FLOAT32_LIMIT",
    "Images",
    "cancellation_of",
    "check_batch_norm",
    "check_images",
    "check_not_cancelled",
    "check_seed",
    "check_subset",
    "checked_labels",
    "checked_number",
    "checked_threads",
]

Images = NDArray[np.uint8] | NDArray[np.float32]
FLOAT32_LIMIT = float(np.finfo(np.float32).max)


def check_seed(seed: object) -> None:
    """Raise `ConfigError` unless this can seed a generator."""
    numbers = seed if isinstance(seed, tuple) and seed else (seed,)
    if not all(_is_whole(number) and number >= 0 for number in numbers):
        message = f"the seed must be a whole number of 0 or more, or a tuple of them; got {seed!r}"
        raise ConfigError(message)


def check_images(plan: Plan, images: object, where: str) -> None:
    """Raise `DataError` unless these are images for the plan's input; messages call them `where`."""
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


def checked_labels(plan: Plan, labels: object, count: int) -> NDArray[np.int64]:
    """Return a copy of the labels of `count` images; raise `DataError` for anything else.

    Labels index memory: what was checked is the caller's no more, who might change it while others compute.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64:
        kind = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        message = f"labels must be a numpy array, int64 [N]; got {kind}"
        raise DataError(message)
    if labels.shape != (count,):
        message = f"labels must be int64 [{count}], one for each image; got shape {list(labels.shape)}"
        raise DataError(message)
    own: NDArray[np.int64] = np.array(labels, dtype=np.int64, order="C")
    wrong = np.flatnonzero((own < 0) | (own >= plan.classes))
    if len(wrong):
        message = f"label {wrong[0]} is {own[wrong[0]]}, but the network's classes are 0..{plan.classes - 1}"
        raise DataError(message)
    return own


def check_batch_norm(plan: Plan, count: int, where: str) -> None:
    """Raise `DataError` when `count` images are too few for a batch norm's own statistics."""
    # The variance of a single value is zero, whatever the image: PyTorch refuses it too.
    for operation in plan.operations:
        if isinstance(operation, BatchNorm) and count * math.prod(plan.shapes[operation.name][1:]) == 1:
            message = (
                f"{where}: batch norm {operation.name!r} would see a single value per channel; "
                "give at least two images at a time"
            )
            raise DataError(message)


def check_subset(plan: Plan, subset: object) -> None:
    """Raise `DataError` unless this is a subset of the plan's filter groups."""
    if not isinstance(subset, Subset):
        message = f"the subset must be a Subset, got {type(subset).__name__}; draw one with network.draw"
        raise DataError(message)
    subset.check(plan.sizes)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def checked_number(name: str, value: float, below: float = FLOAT32_LIMIT) -> float:
    """Return a number of 0 or more and below a limit; raise `ConfigError` for anything else."""
    known = _is_whole(value) or isinstance(value, (float, np.floating))
    if not known or not 0.0 <= value < below:
        limit = "finite in float32" if below == FLOAT32_LIMIT else f"below {below:g}"
        message = f"{name} must be a number, 0 or more and {limit}; got {value!r}"
        raise ConfigError(message)
    return float(value)


def checked_threads(threads: int) -> int:
    """Return a number of threads; raise `ConfigError` for anything else."""
    if not _is_whole(threads) or threads < 1:
        message = f"threads must be a whole number of 1 or more; got {threads!r}"
        raise ConfigError(message)
    return int(threads)


def check_not_cancelled(cancellation: Cancellation | None, what: str) -> None:
    """Raise `CancellationError` when somebody has cancelled `what`, say "a step over 32 images"."""
    if cancellation is not None and cancellation.cancelled:
        raise cancellation_of(what)


def cancellation_of(what: str) -> CancellationError:
    """Return the error to raise when `what` was cancelled."""
    return CancellationError(f"{what} was cancelled and has changed nothing; do it again if it is still wanted")
