"""The native backend: the compiled engine does a whole step, from the images' bytes to the updated weights."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge import _native
from distreal_edge.engine.checks import cancellation_of
from distreal_edge.errors import ConfigError, DataError
from distreal_edge.network.native_plan import MAXIMUM_BATCH, by_operation
from distreal_edge.network.operations import BatchNorm, Dropout
from distreal_edge.network.preprocessing import draw_augmentation
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from distreal_edge._native import Cancellation
    from distreal_edge.dropout import Subset
    from distreal_edge.engine.checks import Images
    from distreal_edge.network import Plan

__all__ = ["NativeBackend"]

_log = logging.getLogger(__name__)
_MOST_THREADS = 256
"""More help no step, and each takes memory."""


class NativeBackend:
    """Run a plan on the compiled engine; the arrays of `weights` are shared, not copied, and change with every step.

    Random numbers are drawn here and handed over, in the order that `docs/engine.md` prescribes.
    """

    def __init__(self, plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Prepare an executor; raise `ConfigError` for an instruction set that does not run here."""
        self._plan = plan
        self.momentum: Mapping[str, NDArray[np.float32]] = {
            name: np.zeros(parameter.shape, dtype=np.float32) for name, parameter in plan.parameters.items()
        }
        try:
            chosen = _native.instruction_set()
        except ValueError as error:  # the environment asks for one that is unknown, or is not this processor's
            raise ConfigError(str(error)) from None
        with _explained("the network's engine", "use a network with smaller maps or fewer filters"):
            self._engine = _native.Engine(
                plan.native, by_operation(plan, weights), by_operation(plan, self.momentum), chosen
            )
        self.instruction_set: str | None = self._engine.instruction_set
        _announce(self._engine.instruction_set)
        self._turn = threading.Lock()  # native code lets other Python threads run, and has one arena for each engine

    @property
    def arena_bytes(self) -> int | None:
        """How many bytes the largest step or pass so far has needed, weights and momentum aside."""
        return self._engine.arena_bytes

    def reset_momentum(self) -> None:
        """Set the momentum of every element to zero."""
        for momentum in self.momentum.values():
            momentum.fill(0.0)

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
        _check_count(images)
        kept = subset.mask(self._plan.sizes)
        with self._turn, _explained(f"a step over {count_of(len(images), 'image')}", "make the batch smaller"):
            corners, flips = draw_augmentation(len(images), self._plan.preprocessing, rng)
            return self._engine.step(
                _plain(images),
                labels,
                kept,
                corners=None if corners is None else corners.astype(np.int32),
                flips=flips,
                draws=self._dropout_draws(kept, len(images), rng),
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                threads=min(threads, _MOST_THREADS),
                cancellation=cancellation,
            )

    def predict(self, images: Images, threads: int, cancellation: Cancellation | None = None) -> NDArray[np.float32]:
        """Return the full network's class scores `[N, classes]`."""
        scores = np.empty((len(images), self._plan.classes), dtype=np.float32)
        with self._turn, _explained(f"a pass over {count_of(len(images), 'image')}", "give fewer at a time"):
            self._engine.predict(_plain(images), scores, min(threads, _MOST_THREADS), cancellation)
        return scores

    def batch_moments(
        self, images: Images, threads: int, cancellation: Cancellation | None = None
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Return mean and biased variance per channel of what every batch norm of the full network sees."""
        _check_count(images)
        names = [operation.name for operation in self._plan.operations if isinstance(operation, BatchNorm)]
        with self._turn, _explained(f"a pass over {count_of(len(images), 'image')}", "give fewer at a time"):
            moments = self._engine.batch_moments(_plain(images), min(threads, _MOST_THREADS), cancellation)
        return dict(zip(names, moments, strict=True))

    def _dropout_draws(
        self, kept: NDArray[np.bool_], count: int, rng: np.random.Generator
    ) -> list[NDArray[np.float32]]:
        draws: list[NDArray[np.float32]] = []
        for operation in self._plan.operations:
            if isinstance(operation, Dropout):
                survivors = int(np.count_nonzero(kept[self._plan.layout.of[operation.name]]))
                shape = (count, survivors, *self._plan.shapes[operation.name][1:])
                draws.append(rng.random(shape, dtype=np.float32))
        return draws


def _check_count(images: Images) -> None:
    if len(images) > MAXIMUM_BATCH:
        message = f"images: {len(images)} are more than the {MAXIMUM_BATCH} that go together; give fewer at a time"
        raise DataError(message)


def _plain(images: Images) -> Images:
    """Return images as native code reads them: elements one after the other, aligned, of no class but ndarray."""
    return np.require(images, requirements=("C", "A", "E"))


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise ConfigError(f"{what} does not fit into this machine's memory; {remedy}") from None
    except _native.CancelledError:
        raise cancellation_of(what) from None


@cache
def _announce(instruction_set: str) -> None:
    _log.info("the native engine computes with the instruction set %s", instruction_set)
