"""How NSGA-II makes new vectors out of two: on the line between them, with a little noise."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import optuna

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LineCrossover", "make_sampler"]

_BEYOND: Final = 0.25
"""How far beyond either parent a child may lie, as a share of their distance."""
_NOISE: Final = 0.15
"""The most noise, as a share of a gene's range."""
_NOISY_SHARE: Final = 0.3
"""Of the genes."""


class LineCrossover(optuna.samplers.nsgaii.BaseCrossover):
    """Blend two parents by one factor for all genes; add normal noise to some genes, of a strength drawn per child.

    Groups of a network work together: a vector between two good ones is good, one that takes some rates of each is
    lopsided. Crossovers that blend or swap gene by gene make lopsided children. What leaves the range is put back to
    its border, where many good rates are (0: keep all).
    """

    n_parents = 2

    def crossover(
        self,
        parents_params: NDArray[np.float64],
        rng: np.random.RandomState,
        study: optuna.Study,  # noqa: ARG002 - Optuna's interface
        search_space_bounds: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return a child of two parents, `[parents, genes]`, within bounds `[genes, 2]`."""
        one, other = parents_params
        low, high = search_space_bounds.T
        strength = _NOISE * rng.uniform() ** 2
        noise = strength * (high - low) * rng.standard_normal(len(one)) * (rng.uniform(size=len(one)) < _NOISY_SHARE)
        child: NDArray[np.float64] = one + rng.uniform(-_BEYOND, 1.0 + _BEYOND) * (other - one) + noise
        return child.clip(low, high)


def make_sampler(population: int) -> optuna.samplers.NSGAIISampler:
    """Return NSGA-II as this search uses it."""
    arguments: dict[str, Any] = {"population_size": population, "crossover": LineCrossover()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        mutation = optuna.samplers.nsgaii.PolynomialMutation()
        return optuna.samplers.NSGAIISampler(**arguments, mutation=mutation)
