"""A tiny network and dataset in files, scenarios over them, and a runner in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.config import NetworkChoice, Rounds, Training
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.simulate import Federation, Scenario
from distreal_edge.simulate.scenario import Availability, Data, Devices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from distreal_edge.simulate.records import RoundRecord

IMAGES, CLASSES, SIDE = 240, 3, 6


@pytest.fixture(scope="session")
def network_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions of 10 and 20 filters with batch norm, so that all five widths of HeteroFL and FjORD differ."""
    builder = PlanBuilder((1, SIDE, SIDE))
    value = builder.relu(builder.batch_norm("bn1", builder.conv2d("conv1", builder.input, 10, kernel=3, padding=1)))
    value = builder.max_pool(value, kernel=2, stride=2)
    value = builder.relu(builder.batch_norm("bn2", builder.conv2d("conv2", value, 20, kernel=3, padding=1)))
    plan = builder.finish(builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), CLASSES))
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    Network.initialise(plan, 0).save(path)
    return path


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose classes differ in where they are bright."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    arrays: dict[str, Any] = {}
    for split, number in (("train", IMAGES), ("test", 60)):
        labels = rng.integers(0, CLASSES, number)
        images = rng.integers(0, 128, (number, 1, SIDE, SIDE))
        for image, label in zip(images, labels, strict=True):
            image[0, 2 * label : 2 * label + 2] += 100
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels.astype(np.int64)}
    np.savez(path, **arrays, classes=CLASSES, layout="NCHW")
    return path


@pytest.fixture(scope="session")
def scenario_of(network_file: Path, data_file: Path) -> Callable[..., Scenario]:
    """Make a scenario: ten devices of 20 images, five of them a round, rounds of 60 s of which 6 are for uploads."""

    def make(**changed: Any) -> Scenario:
        rounds = {"number": 3, "seconds": 60.0, "upload_seconds": 6.0, "devices_per_round": 5}
        training = {"batch": 5, "lr": 0.05, "statistics_images": 0}
        data = {"test_images": 60, "calibration_images": 40}
        known: dict[str, Any] = {
            "name": "tiny",
            "network": NetworkChoice(file=str(network_file)),
            "data": Data(name="npz", root=str(data_file), **data | changed.pop("data", {})),
            "devices": Devices(**{"number": 10} | changed.pop("devices", {})),
            "availability": Availability(**changed.pop("availability", {})),
            "rounds": Rounds(**rounds | changed.pop("rounds", {})),
            "training": Training(**training | changed.pop("training", {})),
            "evaluate_every": 1,
        }
        return Scenario(**known | changed)

    return make


def here(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
    return [function(task) for task in tasks]


@pytest.fixture(scope="session")
def run_here() -> Callable[..., list[Any]]:
    """Do the tasks one after the other in this process."""
    return here


@pytest.fixture(scope="session")
def records_of() -> Callable[[Scenario, str], list[RoundRecord]]:
    def run(scenario: Scenario, rival: str) -> list[RoundRecord]:
        return list(Federation(scenario, rival).rounds(here))

    return run


@pytest.fixture(scope="session")
def spy_on() -> Callable[..., Any]:
    """Run a federation and return (task, trained) of every training in it, with the federation."""

    def run(scenario: Scenario, rival: str) -> tuple[Federation, list[RoundRecord], list[tuple[Any, Any]]]:
        seen: list[tuple[Any, Any]] = []

        def runner(function: Callable[[Any], Any], tasks: Sequence[Any]) -> list[Any]:
            results = here(function, tasks)
            seen.extend((task, result) for task, result in zip(tasks, results, strict=True) if hasattr(task, "device"))
            return results

        federation = Federation(scenario, rival)
        return federation, list(federation.rounds(runner)), seen

    return run
