"""The reference backend: images are prepared in numpy, and PyTorch computes on physically smaller tensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.engine.checks import check_not_cancelled
from distreal_edge.errors import ConfigError
from distreal_edge.network.preprocessing import augment, normalise
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from distreal_edge._native import Cancellation
    from distreal_edge.dropout import Subset
    from distreal_edge.engine.checks import Images
    from distreal_edge.network import Plan
    from distreal_edge.network.reference import ReferenceExecutor

__all__ = ["ReferenceBackend"]


class ReferenceBackend:
    """Run a plan on PyTorch; the arrays of `weights` are shared, not copied, and change with every step."""

    instruction_set: str | None = None  # PyTorch's own choice
    arena_bytes: int | None = None  # PyTorch's own allocations

    def __init__(self, plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Prepare an executor; raise `ConfigError` where PyTorch is missing."""
        self._plan = plan
        self._executor = _executor(plan, weights)
        self.momentum: Mapping[str, NDArray[np.float32]] = {
            name: momentum.numpy() for name, momentum in self._executor.momentum.items()
        }

    def reset_momentum(self) -> None:
        """Set the momentum of every element to zero."""
        self._executor.reset_momentum()

    def step(
        self,
        images: Images,
        labels: NDArray[np.int64],
        subset: Subset,
        rng: np.random.Generator,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        threads: int,
        cancellation: Cancellation | None = None,
    ) -> float:
        """Train the survivors on one mini-batch; return the mean loss before the update."""
        check = partial(check_not_cancelled, cancellation, f"a step over {count_of(len(images), 'image')}")
        check()
        self._executor.use_threads(threads)
        prepared = self._prepared(augment(images, self._plan.preprocessing, rng))
        return self._executor.step(prepared, labels, subset, lr, momentum, weight_decay, rng, before_update=check)

    def predict(self, images: Images, threads: int, cancellation: Cancellation | None = None) -> NDArray[np.float32]:
        """Return the full network's class scores `[N, classes]`."""
        check_not_cancelled(cancellation, f"a pass over {count_of(len(images), 'image')}")
        self._executor.use_threads(threads)
        return self._executor.predict(self._prepared(images)).astype(np.float32, copy=False)

    def batch_moments(
        self, images: Images, threads: int, cancellation: Cancellation | None = None
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Return mean and biased variance per channel of what every batch norm of the full network sees."""
        check_not_cancelled(cancellation, f"a pass over {count_of(len(images), 'image')}")
        self._executor.use_threads(threads)
        return self._executor.batch_moments(self._prepared(images))

    def _prepared(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        return np.ascontiguousarray(normalise(images, self._plan.preprocessing))


def _executor(plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> ReferenceExecutor:
    try:
        from distreal_edge.network.reference import ReferenceExecutor  # noqa: PLC0415 - torch may be missing
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torch":
            raise
        message = "the reference backend needs PyTorch, which is not installed: pip install 'distreal-edge[torch]'"
        raise ConfigError(message) from None
    return ReferenceExecutor(plan, weights)
