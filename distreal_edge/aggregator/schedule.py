"""What changes from round to round: the ceiling and the learning rate. Rounds are counted from 1."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ceiling_at", "ceiling_by_progress", "check_ceilings", "learning_rate_at", "widest_ceiling"]


def check_ceilings(steps: Sequence[tuple[float, float]]) -> None:
    """Raise `ConfigError` unless the steps `(from share of the rounds, ceiling)` start at 0 and rise in their share."""
    if not steps or steps[0][0] != 0.0:
        raise ConfigError("ceiling: the first step must have from_share = 0.0, so that every round has a ceiling")
    for before, after in pairwise(steps):
        if not after[0] > before[0]:
            raise ConfigError(f"ceiling: from_share must rise from step to step, but {after[0]} follows {before[0]}")


def ceiling_at(steps: Sequence[tuple[float, float]], number: int, rounds: int) -> float:
    """Return the ceiling of a round; one step is a constant ceiling, several raise (or lower) it in between.

    A step from share s on holds for the first time in the round before which s of all rounds are done.
    """
    done = (number - 1) / rounds
    return [ceiling for share, ceiling in steps if share <= done + 1e-9][-1]


def widest_ceiling(steps: Sequence[tuple[float, float]], number: int, rounds: int) -> float:
    """Return the highest ceiling that has held up to this round."""
    return max(ceiling_at(steps, each, rounds) for each in range(1, number + 1))


def ceiling_by_progress(
    ceilings: Sequence[float], losses: Sequence[float | None], *, window: int, least_fall: float
) -> float:
    """Return the ceiling of the next round, from the mean training losses of all rounds so far.

    It begins with the first of `ceilings`. The next one's turn comes when the loss has stopped falling: when the mean
    of the last `window` rounds under the present ceiling is not less than that of the `window` rounds before them by
    the share `least_fall`. A ceiling lets no wider rows through, so that these are losses of narrow rows alone; what
    was lost under another ceiling does not count. Rounds without a loss, in which nobody trained, are passed over.
    """
    if not ceilings or window < 1 or not 0.0 <= least_fall < 1.0:
        raise ConfigError(
            f"ceiling by progress: needs a ceiling, a window of at least 1 round and a least fall in [0, 1), "
            f"not {list(ceilings)}, {window} and {least_fall:g}"
        )
    stage = 0
    own: list[float] = []
    for loss in losses:
        if loss is None:
            continue
        own.append(loss)
        if len(own) < 2 * window or stage == len(ceilings) - 1:
            continue
        before, after = sum(own[-2 * window : -window]), sum(own[-window:])
        if not after < (1.0 - least_fall) * before:
            stage, own = stage + 1, []
    return ceilings[stage]


def learning_rate_at(first: float, final: float | None, number: int, rounds: int) -> float:
    """Return the learning rate of a round: `first` throughout, or from `first` to `final` along a half cosine."""
    if final is None or rounds == 1:
        return first
    done = min(1.0, (number - 1) / (rounds - 1))
    return final + (first - final) * (1.0 + math.cos(math.pi * done)) / 2.0
