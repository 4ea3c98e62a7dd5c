from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.search.front import hypervolume, pareto_front

_POINTS = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.35, 0.5, 0.8, 1.0]), st.integers(-3, 6)), max_size=12)


@given(_POINTS)
def test_a_front_is_what_no_other_point_dominates(points: list[tuple[float, float]]) -> None:
    def beaten(one: tuple[float, float]) -> bool:
        return any(cost <= one[0] and score >= one[1] and (cost, score) != one for cost, score in points)

    expected = sorted({point for point in points if not beaten(point)})
    front = [points[number] for number in pareto_front(points)]
    assert front == expected


@given(_POINTS)
def test_the_hypervolume_is_the_mean_over_budgets_of_the_best_score_within_each(
    points: list[tuple[float, float]],
) -> None:
    budgets = [2.0 ** (log2(0.1) * (1.0 - (number + 0.5) / 4000)) for number in range(4000)]
    best = [max([score for cost, score in points if cost <= budget], default=0.0) for budget in budgets]
    expected = sum(max(0.0, score) for score in best) / len(best)
    assert hypervolume(points, cheapest=0.1) == pytest.approx(expected, abs=0.01)


def test_another_point_never_makes_the_hypervolume_smaller() -> None:
    points = [(0.25, 0.5), (1.0, 1.0)]
    assert hypervolume([*points, (0.5, 0.9)], cheapest=1 / 16) > hypervolume(points, cheapest=1 / 16)
    assert hypervolume([*points, (0.5, 0.4)], cheapest=1 / 16) == hypervolume(points, cheapest=1 / 16)
    assert hypervolume(points, cheapest=1 / 16) == pytest.approx(0.5 * 2 / 4)
    assert hypervolume([], cheapest=0.5) == 0.0
