from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest

from distreal_edge.search.breeding import LineCrossover, make_sampler
from distreal_edge.search.front import hypervolume

GENES = 12


def _child(one: float, other: float, seed: int) -> np.ndarray:
    parents = np.array([np.full(GENES, one), np.full(GENES, other)])
    bounds = np.array([[0.0, 0.9375]] * GENES)
    study = optuna.create_study()
    return LineCrossover().crossover(parents, np.random.RandomState(seed), study, bounds)


@pytest.mark.parametrize("seed", range(40))
def test_a_child_stays_within_the_bounds_even_of_parents_on_the_border(seed: int) -> None:
    for one, other in ((0.0, 0.9375), (0.0, 0.0), (0.9375, 0.9375)):
        child = _child(one, other, seed)
        assert child.shape == (GENES,)
        assert np.all((child >= 0.0) & (child <= 0.9375))


def test_most_genes_of_a_child_lie_on_the_line_between_its_parents() -> None:
    # Both parents have equal genes, so that on the line all genes are equal: the most frequent value is the line's.
    on_the_line = []
    for seed in range(200):
        _, times = np.unique(_child(0.2, 0.6, seed), return_counts=True)
        on_the_line.append(times.max() / GENES)
    assert 0.6 < np.mean(on_the_line) < 0.8


def test_what_both_parents_keep_whole_mostly_stays_whole() -> None:
    whole = [np.mean(_child(0.0, 0.0, seed) == 0.0) for seed in range(200)]
    assert np.mean(whole) > 0.7


def test_breeding_fills_the_gaps_between_its_parents() -> None:
    # Cost is the sum of what is kept, and the score is best when all groups keep the same: three parents on that line.
    def evaluate(rates: np.ndarray) -> tuple[float, float]:
        kept = 1.0 - rates
        return float(kept.mean()), float(-np.mean(1.0 / kept) - 20.0 * np.var(kept))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=make_sampler(8))
    names = [f"rate{gene}" for gene in range(GENES)]
    points = []
    for number in range(120):
        if number < 3:
            study.enqueue_trial(dict.fromkeys(names, (0.0, 0.45, 0.9)[number]))
        trial = study.ask()
        _ = trial.relative_params
        rates = np.array([trial.suggest_float(name, 0.0, 0.9) for name in names])
        points.append(evaluate(rates))
        study.tell(trial, points[-1])

    def reached(chosen: list[tuple[float, float]]) -> float:
        return hypervolume([(cost, 10.0 + score) for cost, score in chosen], cheapest=0.1)

    best = reached([evaluate(np.full(GENES, rate)) for rate in np.linspace(0.0, 0.9, 400)])
    assert reached(points) - reached(points[:3]) > 0.6 * (best - reached(points[:3]))
