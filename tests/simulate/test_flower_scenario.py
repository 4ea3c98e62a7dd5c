"""What benchmarks/flower.py tells Flower's side is what our own simulation does with the same scenario."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.simulate import Federation, Scenario, world_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import flower_scenario  # noqa: PLC0415

    yield flower_scenario
    del sys.modules["flower_scenario"]


@pytest.fixture
def scenario(benchmark: ModuleType, tmp_path: Path) -> Scenario:
    rng = np.random.default_rng(0)
    for split, count in (("train", 700), ("test", 8)):
        images, labels = rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), rng.integers(0, 10, count)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels, classes=10, layout="NCHW")
    size = replace(benchmark.SIZES["fashion-mnist"], side=8, devices=3, per_round=2, rounds=2, test_images=8)
    return benchmark.make_scenario(size, 1, tmp_path)


def test_the_devices_selected_are_those_that_the_simulation_selects(benchmark: ModuleType, scenario: Scenario) -> None:
    selected = []

    def train_here(function: Any, tasks: Sequence[Any]) -> list[Any]:
        selected.append([task.device for task in tasks if hasattr(task, "device")])
        return [function(task) for task in tasks]

    list(Federation(scenario, "full-unlimited").rounds(train_here))

    assert benchmark.select_devices(scenario) == selected[: scenario.rounds.number]


def test_the_shards_written_hold_every_image_of_the_scenario_once(
    benchmark: ModuleType, scenario: Scenario, tmp_path: Path
) -> None:
    benchmark.write_for_flower(scenario, tmp_path, cores=2)

    world = world_of(scenario)
    files = [tmp_path / f"shard-{device}.npz" for device in range(3)] + [tmp_path / "held-out.npz"]
    written = [np.load(file)["calibration" if "held" in file.name else "images"] for file in files]
    assert sorted(image.tobytes() for part in written for image in part) == sorted(
        image.tobytes() for image in world.train.images
    )


def test_the_plan_counts_whole_mini_batches_of_each_shard(
    benchmark: ModuleType, scenario: Scenario, tmp_path: Path
) -> None:
    benchmark.write_for_flower(scenario, tmp_path, cores=2)

    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    shards = [len(np.load(tmp_path / f"shard-{device}.npz")["labels"]) for device in range(3)]
    assert [own["mini_batches"] for own in plan["devices"]] == [round(images / 32) for images in shards]
