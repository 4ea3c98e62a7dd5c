from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.network import Network, PlanBuilder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCENARIO = """\
name = "tiny"
evaluate_every = 1

[network]
file = "tiny.safetensors"

[data]
name = "npz"
root = "blobs.npz"
test_images = 60
calibration_images = 32

[devices]
number = 6

[availability]
kind = "redraw"
every_s = 10.0

[rounds]
number = 3
seconds = 60.0
upload_seconds = 6.0
devices_per_round = 3

[training]
batch = 8
lr = 0.05
"""


def prepare(folder: Path) -> None:
    """Write a tiny network, and a tiny dataset of images that tell their classes by their brightness."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 200)
    images = (rng.integers(0, 120, (200, 6, 6)) + 60 * labels[:, None, None]).astype(np.uint8)
    np.savez(folder / "blobs.npz", x_train=images, y_train=labels, x_test=images[:60], y_test=labels[:60])
    builder = PlanBuilder((1, 6, 6))
    stem = builder.conv2d("stem", builder.input, 4, kernel=3, padding=1, bias=False)
    value = builder.relu(builder.batch_norm("stem_bn", stem))
    inner = builder.relu(builder.conv2d("conv1", value, 6, kernel=3, padding=1))
    value = builder.add(builder.conv2d("conv2", inner, 4, kernel=3, padding=1), value)
    output = builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), 3)
    Network.initialise(builder.finish(output)).save(folder / "tiny.safetensors")


@pytest.fixture
def scenario_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a scenario of three rounds in the current folder, some of its lines replaced, and return its file."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)

    def write(**replaced: str) -> Path:
        text = SCENARIO
        for key, line in replaced.items():
            (there,) = [each for each in text.splitlines() if each.startswith(f"{key} = ")][:1]
            text = text.replace(there, line)
        (tmp_path / "tiny.toml").write_text(text)
        return tmp_path / "tiny.toml"

    return write
