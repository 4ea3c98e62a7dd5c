"""A tiny network and dataset in files, scenarios over them, and a runner in this process."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.config import NetworkChoice
from distreal_edge.device import elements_of, offsets_of, read_update
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.simulate import Federation, Scenario
from distreal_edge.simulate.scenario import Availability, Data, Devices, Rounds, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from distreal_edge.simulate.records import RoundRecord
    from distreal_edge.simulate.training import Trained

IMAGES, CLASSES, SIDE = 240, 3, 6
SCENARIO = """\
name = "tiny"
evaluate_every = 1

[network]
file = "tiny.safetensors"

[data]
name = "npz"
root = "tiny.npz"
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


@dataclass(frozen=True, eq=False)
class Sent:
    """What one device sent: its changes as one array for each tensor, the filters it kept and its images."""

    changes: dict[str, NDArray[np.float64]]
    kept: NDArray[np.bool_]  # kinds of mini-batch, filters: 10 of conv1, then 20 of conv2
    images: int
    mini_batches: int
    rows: dict[int, int]

    def holds(self, name: str, *, kind: int | None = None) -> NDArray[np.bool_]:
        """Return which elements of a tensor lie within the filters kept by any mini-batch, or by one kind of them."""
        masks = [
            touched(name, kept[:10], kept[10:]) for kept in (self.kept if kind is None else self.kept[kind : kind + 1])
        ]
        shape = self.changes[name].shape
        return np.broadcast_to(np.any(masks, axis=0) if masks else np.False_, shape)


def touched(name: str, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Write out which elements of the tiny network's tensors a mini-batch trains that keeps these filters."""
    match name.partition(".")[0], name.rpartition(".")[2]:
        case "conv1", "weight":
            return first[:, None, None, None]
        case "conv1" | "bn1", _:
            return first
        case "conv2", "weight":
            return second[:, None, None, None] & first[None, :, None, None]
        case "conv2" | "bn2", _:
            return second
        case "fc", "weight":
            return second[None, :]
    return np.ones(1, dtype=np.bool_)


@pytest.fixture(scope="session")
def sent_by() -> Callable[[Network, Trained], Sent]:
    """Read what a device trained out of its update."""

    def read(network: Network, trained: Trained) -> Sent:
        reader = read_update(trained.update, network.plan)
        vector = np.empty(elements_of(network.plan), dtype=np.float32)
        reader.read(0, len(vector), vector)
        changes = {
            name: vector[begin:end].reshape(network.plan.parameters[name].shape).astype(np.float64)
            for name, (begin, end) in offsets_of(network.plan).items()
        }
        header = trained.header
        return Sent(changes, reader.survivors().kept()[:, :-1], header.images, header.mini_batches, trained.rows)

    return read


@pytest.fixture
def scenario_file(
    network_file: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Write a scenario of three rounds in the current folder, some of its lines replaced, and return its file."""
    monkeypatch.chdir(tmp_path)
    for file in (network_file, data_file):
        shutil.copy(file, tmp_path)

    def write(**replaced: str) -> Path:
        text = SCENARIO
        for key, line in replaced.items():
            there = next(each for each in text.splitlines() if each.startswith(f"{key} = "))
            text = text.replace(there, line)
        (tmp_path / "tiny.toml").write_text(text)
        return tmp_path / "tiny.toml"

    return write
