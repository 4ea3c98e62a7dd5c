"""What a search is: everything that decides its result, stored with it, and equal for all who join."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import numpy as np

from distreal_edge.dropout import check_policy
from distreal_edge.errors import ConfigError
from distreal_edge.search.speed import Horizon, Recipe  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from distreal_edge.data import Dataset

__all__ = ["SearchSettings", "dataset_digest"]

Cost = Literal["macs", "seconds"]
_MOST_MINI_BATCHES: Final = 10_000_000
_Count = Annotated[int, msgspec.Meta(ge=2, le=10_000_000)]


class SearchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides a search's result, except how long it may take.

    `network` and `data` are what tables call them, `network_digest` and `data_digest` what they are; `snapshots_at` are
    numbers of mini-batches of the mixed-rate training, `recovery` the number of those at full width that end a
    confirmation. `cheapest` is the least share of the full network's cost that is looked at, `cost` what costs are
    counted in, and `memory` whether peak memory is an objective of its own.
    """

    network: str
    network_digest: str
    structure: str
    data: str
    data_digest: str
    recipe: Recipe
    snapshots_at: tuple[Annotated[int, msgspec.Meta(ge=1, le=_MOST_MINI_BATCHES)], ...] = (400, 2000)
    screening: Horizon
    confirmation: Horizon
    recovery: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] = 40
    validation_images: _Count = 4096
    calibration_images: _Count = 256
    cheapest: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] = 0.04
    cost: Cost = "macs"
    profile_digest: str | None = None
    memory: bool = False
    population: Annotated[int, msgspec.Meta(ge=4, le=10_000)] = 16
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0

    def __post_init__(self) -> None:
        """Check what types alone do not say; raise `ConfigError`."""
        check_policy(self.recipe.draw)
        at = list(self.snapshots_at)
        if not at or at != sorted(set(at)) or not 1 <= at[0] <= at[-1] <= _MOST_MINI_BATCHES:
            message = (
                "snapshots are taken after rising numbers of mini-batches from 1 on, and "
                f"{_MOST_MINI_BATCHES} at most, not after {at}"
            )
            raise ConfigError(message)

    @property
    def objectives(self) -> tuple[str, ...]:
        """What is minimised: cost, loss, and memory if asked for."""
        return (self.cost, "loss", "memory") if self.memory else (self.cost, "loss")


def dataset_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of a dataset's images and labels, in their order."""
    digest = hashlib.sha256()
    for array in (dataset.images, dataset.labels):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
