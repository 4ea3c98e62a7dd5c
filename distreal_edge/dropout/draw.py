"""Draw policies: which filters of a group survive, once the count is known.

A policy is a function of one group. It is handed everything it may use: the group's size, the count, a generator and
the round. `docs/dropout.md` says what each policy is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.dropout.subset import Subset
from distreal_edge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["DRAW_POLICIES", "Draws", "check_policy", "draw_subset"]

Policy = Callable[[int, int, np.random.Generator, int], "NDArray[np.int64]"]


def draw_ordered(filters: int, keep: int, _rng: np.random.Generator, _round_number: int) -> NDArray[np.int64]:  # noqa: ARG001
    """Keep the first filters, so that every narrower subset lies inside every wider one (FjORD, HeteroFL)."""
    return np.arange(keep, dtype=np.int64)


def draw_random(filters: int, keep: int, rng: np.random.Generator, _round_number: int) -> NDArray[np.int64]:
    """Keep filters at random without replacement: the head of one permutation, sorted (DISTREAL as published)."""
    return np.sort(rng.permutation(filters)[:keep]).astype(np.int64)


def draw_rolling(filters: int, keep: int, _rng: np.random.Generator, round_number: int) -> NDArray[np.int64]:
    """Keep a window that moves by one filter every round and wraps around (FedRolex)."""
    return np.sort((round_number + np.arange(keep, dtype=np.int64)) % filters)


# A sticky draw is a random one whose generator starts afresh for every mini-batch: the same permutation throughout
# a round, of which a cheaper row keeps a shorter head. `Draws` does the starting afresh.
DRAW_POLICIES: Mapping[str, Policy] = MappingProxyType(
    {"ordered": draw_ordered, "random": draw_random, "sticky": draw_random, "rolling": draw_rolling}
)


def check_policy(policy: str) -> Policy:
    """Return the policy of this name, or raise `ConfigError` that lists the names there are."""
    try:
        return DRAW_POLICIES[policy]
    except (KeyError, TypeError):
        message = f"unknown draw policy {policy!r}; choose one of {', '.join(DRAW_POLICIES)}"
        raise ConfigError(message) from None


def draw_subset(
    sizes: Sequence[int], counts: Sequence[int], rng: np.random.Generator, policy: str, round_number: int = 0
) -> Subset:
    """Draw `counts[g]` survivors of each of the groups with these sizes.

    Raises `ConfigError` for an unknown policy and `DataError` for counts that do not fit the groups.
    """
    draw = check_policy(policy)
    if len(counts) != len(sizes) or not all(1 <= keep <= size for keep, size in zip(counts, sizes, strict=True)):
        message = f"cannot keep {list(counts)} filters of groups with {list(sizes)}: at least one, at most all of each"
        raise DataError(message)
    return Subset(tuple(draw(size, keep, rng, round_number) for size, keep in zip(sizes, counts, strict=True)))


@dataclass(slots=True)
class Draws:
    """The draws of one device in one round.

    `seed` belongs to this device and round; `policy` is the federation's. Calling it draws the next mini-batch.
    """

    policy: str
    sizes: tuple[int, ...]
    seed: tuple[int, ...]
    round_number: int
    _rng: np.random.Generator | None = None

    def __call__(self, counts: Sequence[int]) -> Subset:
        """Draw the survivors of the next mini-batch, `counts[g]` filters of group g."""
        if self._rng is None or self.policy == "sticky":
            self._rng = np.random.default_rng(self.seed)
        return draw_subset(self.sizes, counts, self._rng, self.policy, self.round_number)
