"""Pareto fronts and their hypervolume."""

from __future__ import annotations

from math import log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["hypervolume", "pareto_front"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of (cost, score) no other point beats: cheaper and as good, or as cheap and better.

    They come cheapest first, so that cost and score rise together; of equal points the first one stands for all.
    """
    order = sorted(range(len(points)), key=lambda number: (points[number][0], -points[number][1], number))
    front: list[int] = []
    for number in order:
        if not front or points[number][1] > points[front[-1]][1]:
            front.append(number)
    return front


def hypervolume(points: Sequence[tuple[float, float]], *, cheapest: float) -> float:
    """Return the area under the front of (share of the full cost, score), as a mean score over budgets.

    Budgets are spread evenly over log2(share) from `cheapest` to 1; with each budget the best score that it buys
    counts, or 0, which is what training nothing scores. It is the hypervolume to the reference point (share 1, score
    0), divided by log2(1 / cheapest): in the unit of the scores, and comparable between numbers of points.
    """
    area, best = 0.0, 0.0
    position = log2(cheapest)
    for number in pareto_front(points):
        share, score = points[number]
        if share > 1.0:
            break
        reached = max(position, log2(share))
        area += best * (reached - position)
        position, best = reached, max(best, score)
    return (area + best * -position) / -log2(cheapest)
