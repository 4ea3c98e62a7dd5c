"""A tiny dataset and a tiny scenario, for demos that take seconds."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from distreal_edge.demo import Scenario

MINIATURE = Path(__file__).with_name("miniature.py")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return an npz file of 2,000 small images in two classes that are easily told apart."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 1600), ("test", 400)):
        labels = rng.integers(0, 2, count)
        pixels = rng.integers(0, 100, (count, 1, 8, 8)) + 150 * labels[:, None, None, None] * (np.arange(8) < 4)
        arrays |= {f"x_{split}": pixels.astype(np.uint8), f"y_{split}": labels.astype(np.int64)}
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def small(images: Path) -> Scenario:
    """Return two rounds on two boards."""
    scenario: Scenario = runpy.run_path(str(MINIATURE))["miniature"](images, 2)
    return scenario
