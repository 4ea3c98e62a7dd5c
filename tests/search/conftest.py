from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.data import Dataset
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search.settings import SearchSettings
from distreal_edge.search.speed import Horizon, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def network() -> Network:
    """Return a network with a residual stream, a group inside its block, and batch norms: groups of 4 and 6 filters."""
    builder = PlanBuilder((1, 6, 6))
    stem = builder.conv2d("stem", builder.input, 4, kernel=3, padding=1, bias=False)
    value = builder.relu(builder.batch_norm("stem_bn", stem))
    inner = builder.relu(builder.batch_norm("bn", builder.conv2d("conv1", value, 6, kernel=3, padding=1, bias=False)))
    value = builder.add(builder.conv2d("conv2", inner, 4, kernel=3, padding=1), value)
    return Network.initialise(builder.finish(builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), 3)))


@pytest.fixture
def dataset() -> Dataset:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 90)
    images = rng.integers(0, 120, (90, 1, 6, 6)) + 60 * labels[:, None, None, None]
    return Dataset(images.astype(np.uint8), labels.astype(np.int64), 3, name="blobs")


@pytest.fixture
def settings_with() -> Callable[..., SearchSettings]:
    """Return a maker of settings, some of them changed."""

    def settings(**changes: object) -> SearchSettings:
        usual = {
            "network": "tiny",
            "network_digest": "0" * 64,
            "structure": "1" * 64,
            "data": "npz",
            "data_digest": "2" * 64,
            "recipe": Recipe(batch=8),
            "snapshots_at": (2, 4),
            "screening": Horizon(2, (1,)),
            "confirmation": Horizon(2, (101, 102)),
            "recovery": 2,
            "validation_images": 16,
            "calibration_images": 16,
        }
        return SearchSettings(**{**usual, **changes})  # type: ignore[arg-type]

    return settings


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"
