"""How far class scores are from labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["mean_cross_entropy"]


def mean_cross_entropy(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the mean softmax cross-entropy, in nats, of class scores `[N, classes]`, added up in doubles.

    It is not finite for the scores of a model that has diverged, and that is no error.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = scores.astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(axis=1))
        return float(np.mean(log_sum - shifted[np.arange(len(scores)), labels]))
