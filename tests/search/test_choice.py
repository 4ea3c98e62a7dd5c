from __future__ import annotations

from itertools import pairwise, product
from math import log2
from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.dropout import Table, counts_vector, filter_counts
from distreal_edge.errors import ConfigError
from distreal_edge.search import choice
from distreal_edge.search.choice import (
    Confirmed,
    choose_candidates,
    confirmed_vectors,
    estimated_scores,
    seed_vectors,
    table_of,
)
from distreal_edge.search.families import FAMILIES, macs_of
from distreal_edge.search.records import Confirmation, Evaluation, Task
from distreal_edge.search.speed import DIVERGED

if TYPE_CHECKING:
    from distreal_edge.network import Network

Counts = tuple[int, ...]


def screened(costs_and_losses: list[tuple[float, float]]) -> list[Evaluation]:
    return [
        Evaluation(number, (number, 1), cost, 1, (loss,), "", 1.0, "")
        for number, (cost, loss) in enumerate(costs_and_losses)
    ]


def evaluated(network: Network, rng: np.random.Generator, number: int) -> list[Evaluation]:
    """Return evaluations of drawn vectors and of the full network, whose losses fall with the cost, and are noisy."""
    sizes = network.plan.sizes
    drawn = [sizes, *(tuple(int(rng.integers(1, size + 1)) for size in sizes) for _ in range(number))]
    full = macs_of(network, sizes)
    costs = [macs_of(network, counts) / full for counts in drawn]
    return [
        Evaluation(position, counts, cost, 1, (1.0 - 0.1 * log2(cost) + rng.normal(0.0, 0.05),), "", 1.0, "")
        for position, (counts, cost) in enumerate(zip(drawn, costs, strict=True))
    ]


# What a search starts from


def test_a_search_starts_from_every_family_at_all_costs_and_the_full_network_first(network: Network) -> None:
    seeds = seed_vectors(network, 0.05)
    assert seeds[0] == ("full", network.plan.sizes)
    counts = [one for _, one in seeds]
    assert len(set(counts)) == len(counts)
    assert {origin for origin, _ in seeds} <= {"full", *FAMILIES}
    for _, one in seeds:
        assert all(1 <= keep <= size for keep, size in zip(one, network.plan.sizes, strict=True))
    costs = [macs_of(network, one) / macs_of(network, network.plan.sizes) for one in counts]
    assert min(costs) < 0.15
    assert max(costs) == 1.0


def test_the_first_seeds_are_of_all_costs(network: Network) -> None:
    full = macs_of(network, network.plan.sizes)
    costs = [macs_of(network, counts) / full for _, counts in seed_vectors(network, 0.05)]
    assert min(costs[: 1 + 2 * len(FAMILIES)]) < 0.15
    assert any(0.15 < cost < 0.4 for cost in costs[: 1 + 3 * len(FAMILIES)])


# What is confirmed


def test_candidates_are_the_best_of_each_band_and_the_full_network() -> None:
    # With four bands down to 1/16: each band is a halving of the cost.
    evaluations = screened([(1.0, 1.0), (0.6, 1.2), (0.7, 1.1), (0.3, 1.5), (0.4, 1.6), (0.14, 1.9), (0.07, 2.2)])
    chosen = choose_candidates(evaluations, 4, 1 / 16)
    assert [number for number, _ in chosen] == [6, 5, 3, 2, 0]


def test_a_band_that_a_cheaper_one_beats_gives_its_place_to_the_front() -> None:
    evaluations = screened([(1.0, 1.0), (0.9, 1.05), (0.6, 1.2), (0.3, 1.4), (0.2, 1.9), (0.07, 1.5), (0.08, 1.45)])
    chosen = [number for number, _ in choose_candidates(evaluations, 4, 1 / 16)]
    assert 4 not in chosen
    assert set(chosen) == {0, 1, 3, 6, 2}


def test_candidates_are_evaluated_vectors_about_as_many_as_asked_for(network: Network) -> None:
    rng = np.random.default_rng(1)
    evaluations = evaluated(network, rng, 60)
    for number in (1, 2, 5, 20, 200):
        chosen = choose_candidates(evaluations, number, 0.04)
        assert len(set(chosen)) == len(chosen) <= number + 1
        assert set(chosen) <= {one.counts for one in evaluations}
        assert network.plan.sizes in chosen


def test_what_costs_less_than_the_cheapest_share_belongs_to_the_first_band() -> None:
    evaluations = screened([(0.001, 2.0), (0.02, 1.9), (0.05, 1.8), (0.9, 1.0)])
    assert [number for number, _ in choose_candidates(evaluations, 2, 0.04)] == [2, 3]
    assert choose_candidates([], 5, 0.04) == []


# What a confirmation says


def test_a_confirmed_vector_has_what_it_did_beyond_nothing_for_every_snapshot_and_seed() -> None:
    losses = {(): [2.0, 1.9, 1.0, 0.9], (4, 6): [1.5, 1.5, 0.75, 0.75], (1, 1): [1.75, 2.0, 1.0, 1.0]}
    confirmations = [
        Confirmation(Task(counts, snapshot, seed), losses[counts][2 * snapshot + seed], 0.5 + seed, 1.0, "")
        for counts in losses
        for snapshot, seed in [(1, 1), (0, 0), (1, 0), (0, 1)]
    ]
    found = confirmed_vectors(confirmations)
    assert list(found) == [(4, 6), (1, 1)]
    assert found[4, 6].falls == pytest.approx((0.5, 0.4, 0.25, 0.15))
    assert found[4, 6].own_losses == (0.5, 1.5, 0.5, 1.5)
    assert found[1, 1].falls == pytest.approx((0.25, -0.1, 0.0, -0.1))
    without_one = [one for one in confirmations if one.task != Task((1, 1), 1, 0)]
    assert list(confirmed_vectors(without_one)) == [(4, 6)]


# Scores


def simulated(
    rng: np.random.Generator, *, noise: float, off: float, shared: float = 0.0
) -> tuple[dict[Counts, Confirmed], dict[Counts, float], dict[Counts, float]]:
    """Return confirmations of forty vectors, their costs, and what is true.

    What is true is linear in the own loss but for `off`; `shared` is what a snapshot and seed does to all alike.
    """
    order = [(number, 1) for number in range(40)]
    costs = {counts: 2.0 ** -(5.0 * number / 40) for number, counts in enumerate(order)}
    own = {counts: 1.0 - 0.2 * log2(costs[counts]) + rng.normal(0.0, 0.1) for counts in order}
    true = {counts: 0.3 - 0.2 * own[counts] + rng.normal(0.0, 1.0) * off for counts in order}
    common = rng.normal(0.0, 1.0, 6) * shared
    confirmed = {
        counts: Confirmed(tuple(true[counts] + common + noise * rng.normal(0.0, 1.0, 6)), (own[counts],) * 6)
        for counts in order
    }
    return confirmed, costs, true


def error_of(scores: dict[Counts, float], true: dict[Counts, float]) -> float:
    distance = np.array([scores[counts] - true[counts] for counts in true])
    return float(np.sqrt(np.mean((distance - distance.mean()) ** 2)))


def means_of(confirmed: dict[Counts, Confirmed]) -> dict[Counts, float]:
    return {counts: float(np.mean(own.falls)) for counts, own in confirmed.items()}


def test_scores_without_noise_are_what_was_measured() -> None:
    confirmed, costs, true = simulated(np.random.default_rng(1), noise=0.0, off=0.05)
    assert estimated_scores(confirmed, costs) == pytest.approx(true)


def test_what_a_seed_does_to_all_vectors_is_no_noise() -> None:
    confirmed, costs, _ = simulated(np.random.default_rng(1), noise=0.0, off=0.05, shared=10.0)
    assert estimated_scores(confirmed, costs) == pytest.approx(means_of(confirmed))


def test_scores_of_nothing_but_noise_are_the_prediction() -> None:
    confirmed, costs, true = simulated(np.random.default_rng(3), noise=1.0, off=0.0)
    order = list(confirmed)
    own = np.array([confirmed[counts].own_losses[0] for counts in order])
    width = np.log2([costs[counts] for counts in order])
    filters = np.log2([sum(counts) for counts in order])
    features = np.stack([np.ones(40), own, width, width**2, filters], axis=1)
    measured = np.array(list(means_of(confirmed).values()))
    predicted = features @ np.linalg.solve(features.T @ features, features.T @ measured)
    scores = estimated_scores(confirmed, costs)
    towards = np.array(list(scores.values())) - predicted
    assert np.abs(towards).max() < 0.35 * np.abs(measured - predicted).max()
    assert error_of(scores, true) < 0.6 * error_of(means_of(confirmed), true)


@pytest.mark.parametrize(("noise", "off"), [(0.1, 0.0), (0.1, 0.02), (0.1, 0.05), (0.05, 0.2)])
def test_scores_are_nearer_to_the_truth_than_means(noise: float, off: float) -> None:
    estimated, plain = [], []
    for seed in range(60):
        confirmed, costs, true = simulated(np.random.default_rng(seed), noise=noise, off=off)
        estimated.append(error_of(estimated_scores(confirmed, costs), true))
        plain.append(error_of(means_of(confirmed), true))
    gain = np.mean(estimated) / np.mean(plain)
    assert gain < (0.6 if off == 0.0 else 0.85 if off == 0.02 else 1.005)


def test_few_vectors_or_one_measurement_of_each_score_what_was_measured() -> None:
    confirmed, costs, _ = simulated(np.random.default_rng(1), noise=0.1, off=0.0)
    few = dict(list(confirmed.items())[:8])
    assert estimated_scores(few, costs) == pytest.approx(means_of(few))
    once = {counts: Confirmed(own.falls[:1], own.own_losses[:1]) for counts, own in confirmed.items()}
    assert estimated_scores(once, costs) == pytest.approx(means_of(once))


def test_a_vector_that_diverged_says_nothing_about_others() -> None:
    confirmed, costs, _ = simulated(np.random.default_rng(3), noise=0.01, off=0.01)
    scores = estimated_scores(confirmed, costs)
    diverged = Confirmed((-98.0, *(0.3,) * 5), (100.0, *(1.0,) * 5))
    with_it = estimated_scores(confirmed | {(40, 1): diverged}, costs | {(40, 1): 1.0})
    assert with_it.pop((40, 1)) == pytest.approx((-98.0 + 5 * 0.3) / 6)
    assert with_it == scores


def test_vectors_that_all_diverged_score_what_was_measured() -> None:
    diverged = Confirmed((-98.0,) * 6, (100.0,) * 6)
    assert estimated_scores({(1, 1): diverged, (4, 6): diverged}, {(1, 1): 0.1, (4, 6): 1.0}) == {
        (1, 1): -98.0,
        (4, 6): -98.0,
    }


def test_nothing_is_compared_with_a_full_network_that_diverged() -> None:
    confirmations = [Confirmation(Task((), 0, 101), DIVERGED, DIVERGED, 1.0, "")]
    with pytest.raises(ConfigError, match="diverges right after the search's snapshots, so that no vector can be"):
        confirmed_vectors(confirmations)


# Tables


def table(network: Network, scores: dict[Counts, float], rows: int = 16) -> Table:
    return table_of(network, scores, draw="ordered", data="npz", origin="search", batch=8, rows=rows)


def test_a_table_is_the_front_of_its_vectors(network: Network) -> None:
    rng = np.random.default_rng(2)
    sizes = network.plan.sizes
    drawn = list(product(range(1, 5), range(1, 7)))
    scores = {counts: float(macs_of(network, counts) ** 0.5 + rng.normal(0.0, 5.0)) for counts in drawn}
    scores[sizes] = max(scores.values()) + 1.0
    found = table(network, scores, rows=64)
    expected = sorted(
        (macs_of(network, counts), score, counts)
        for counts, score in scores.items()
        if not any(
            macs_of(network, other) <= macs_of(network, counts) and better >= score and other != counts
            for other, better in scores.items()
        )
    )
    assert [(row.macs, row.score, filter_counts(row.vector, sizes)) for row in found.rows] == expected
    assert Table.from_bytes(found.to_bytes()) == found
    found.check_network(network.structure, sizes)
    assert (found.draw, found.data, found.origin, found.batch) == ("ordered", "npz", "search", 8)
    for row in found.rows:
        assert row.peak_bytes == network.cost(row.vector, 8).peak_bytes


def test_of_rows_that_cost_about_the_same_only_the_better_one_stays(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {counts: float(macs_of(network, counts)) for counts in product(range(1, 5), range(1, 7))}
    front = {row.macs: row.score for row in table(network, scores, rows=64).rows[:-1]}
    monkeypatch.setattr(choice, "_HARDLY_MORE", 1.3)
    kept = {row.macs: row.score for row in table(network, scores, rows=64).rows[:-1]}
    assert kept.items() < front.items()
    assert all(1.3 * one <= other for one, other in pairwise(kept))
    for macs, score in front.items():
        assert any(macs <= other < 1.3 * macs and kept[other] >= score for other in kept)


@pytest.mark.parametrize("full_score", [None, -5.0, 0.2, 0.55, 9.0])
def test_the_full_network_is_last_whatever_it_scored(network: Network, full_score: float | None) -> None:
    sizes = network.plan.sizes
    scores: dict[Counts, float] = {(1, 1): -0.1, (2, 3): 0.5, (3, 3): 0.4, (4, 5): 0.6}
    if full_score is not None:
        scores[sizes] = full_score
    found = table(network, scores)
    assert [filter_counts(row.vector, sizes) for row in found.rows] == [(1, 1), (2, 3), (4, 5), sizes]
    assert all(one.score < other.score and one.macs < other.macs for one, other in pairwise(found.rows))
    assert found.rows[-1].score == pytest.approx(max(0.6, full_score or 0.0), abs=1e-5)


def test_a_full_network_alone_is_a_table(network: Network) -> None:
    (row,) = table(network, {network.plan.sizes: -1.0}).rows
    assert (row.vector, row.score) == ((0.0, 0.0), 0.0)


@pytest.mark.parametrize("rows", [3, 5, 16])
def test_of_too_many_rows_the_crowded_go_and_both_ends_stay(network: Network, rows: int) -> None:
    everything = {counts: float(macs_of(network, counts)) for counts in product(range(1, 5), range(1, 7))}
    found = table(network, everything, rows=rows)
    assert len(found.rows) == rows
    assert found.rows[-1].vector == (0.0, 0.0)
    assert found.rows[0].vector == counts_vector((1, 1), network.plan.sizes)
    if rows == 5:
        places = [log2(row.macs) for row in found.rows]
        span = places[-1] - places[0]
        assert max(after - before for before, after in pairwise(places)) < 0.6 * span
