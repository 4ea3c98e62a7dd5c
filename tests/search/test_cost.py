from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.dropout import Profile, counts_vector
from distreal_edge.dropout.profile import PROFILE_SCHEMA_VERSION, ProfiledMachine, ProfiledRow, ProfiledStep
from distreal_edge.errors import ConfigError
from distreal_edge.search.cost import CostOf, SecondsModel, _fit
from distreal_edge.search.families import fit_family

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distreal_edge.network import Cost, Network

MACHINE = ProfiledMachine("a board", 4, None, None, None, 0.0, 0.0)
SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 0.85, 1.0)


def profile(network: Network, seconds: Callable[[Cost], float], shares: Sequence[float] = SHARES) -> Profile:
    """Return a profile of uniform rates in which a step takes as long as `seconds` says, on two threads."""
    vectors = [counts_vector(fit_family(network, "uniform", share), network.plan.sizes) for share in shares]
    costs = {vector: network.cost(vector, 8) for vector in vectors}
    rows = tuple(
        ProfiledRow(
            vector,
            cost.macs,
            (
                ProfiledStep(9.0, 9.0, 0.0, 5, cost.peak_bytes),
                ProfiledStep(seconds(cost), seconds(cost), 0.0, 5, cost.peak_bytes),
            ),
        )
        for vector, cost in costs.items()
    )
    return Profile(
        PROFILE_SCHEMA_VERSION,
        network.structure,
        "0" * 64,
        "ordered",
        8,
        "avx2",
        MACHINE,
        (),
        (1, 2),
        rows,
    )


def test_macs_are_shares_of_the_full_networks(network: Network) -> None:
    cost_of = CostOf(network, 8)
    assert cost_of(network.plan.sizes)[0] == 1.0
    full = network.cost((0.0, 0.0), 8)
    half = network.cost(counts_vector((2, 3), (4, 6)), 8)
    assert cost_of((2, 3)) == (half.macs / full.macs, half.peak_bytes)


@pytest.mark.parametrize("weights", [(2e-3, 3e-9, 4e-9), (0.0, 3e-9, 0.0), (1e-3, 0.0, 2e-8)])
def test_seconds_that_follow_macs_and_bytes_are_predicted_exactly(
    network: Network, weights: tuple[float, float, float]
) -> None:
    def seconds(cost: Cost) -> float:
        return weights[0] + weights[1] * cost.macs + weights[2] * cost.peak_bytes

    measured = profile(network, seconds)
    model = SecondsModel(measured)
    assert model.threads == 2
    assert model.error < 1e-6
    cost_of = CostOf(network, 8, measured)
    for counts in ((1, 6), (4, 1), (2, 2), (4, 6)):
        cost = network.cost(counts_vector(counts, (4, 6)), 8)
        assert model.predict(cost) == pytest.approx(seconds(cost))
        full = network.cost((0.0, 0.0), 8)
        assert cost_of(counts) == (pytest.approx(seconds(cost) / seconds(full)), cost.peak_bytes)


def test_no_weight_is_negative_and_no_other_weights_fit_better() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        features = np.stack([np.ones(9), rng.uniform(0.1, 4.0, 9), rng.uniform(0.5, 2.0, 9)], axis=1)
        seconds = np.maximum(0.05, features @ rng.uniform(-0.5, 1.0, 3) + rng.normal(0.0, 0.1, 9))
        found = _fit(features, seconds)
        assert (found >= 0.0).all()

        def error(weights: np.ndarray, features: np.ndarray = features, seconds: np.ndarray = seconds) -> float:
            return float((((features @ weights) / seconds - 1.0) ** 2).sum())

        least = error(found)
        assert least <= error(np.zeros(3))
        grid = [np.array(point) for point in product(np.linspace(0.0, 1.5, 25), repeat=3)]
        assert least <= min(error(point) for point in grid) + 1e-12
        # No step that is allowed goes downhill.
        for axis, sign in product(range(3), (-1, 1)):
            moved = found.copy()
            moved[axis] += sign * 1e-5
            assert moved[axis] < 0.0 or error(moved) >= least - 1e-12


def test_the_error_is_that_of_rows_that_were_left_out(network: Network) -> None:
    measured = profile(network, lambda cost: 1e-3 + 3e-9 * cost.macs * (1.3 if cost.macs % 2 else 0.8))
    noisy = profile(network, lambda cost: 1e-3 * (1.0 + (cost.macs % 7)))
    assert SecondsModel(measured).error < SecondsModel(noisy).error
    assert SecondsModel(noisy).error > 0.05


def test_a_short_profile_is_refused(network: Network) -> None:
    with pytest.raises(ConfigError, match="a profile of 5 rows says too little about others; profile a longer table"):
        SecondsModel(profile(network, lambda _cost: 1.0, SHARES[2:]))
