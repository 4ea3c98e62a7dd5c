"""The scenarios that flower.py runs in both simulators, and the files that tell Flower's side what to do.

Flower's side has none of this project's code: shards, weights, who takes part in which round and what seeds the order
of a device's images are written down for it.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distreal_edge.aggregator import AggregatorRounds, Finish, Open, RoundSettings
from distreal_edge.aggregator.rounds import SETTLE_S
from distreal_edge.config import NetworkChoice, Rounds, Training
from distreal_edge.data import load_dataset, split_off
from distreal_edge.simulate import Scenario, world_of
from distreal_edge.simulate.scenario import Availability, Data, Devices

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SIZES", "Size", "make_scenario", "quick", "select_devices", "write_data", "write_for_flower"]

CALIBRATION_IMAGES = 512
BLOCKS = {"resnet8": 1, "resnet20": 3}


@dataclass(frozen=True, slots=True)
class Size:
    """What is trained on what: `images` of the training split are cut into shards, of unequal sizes and labels."""

    network: str
    data: str
    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    devices: int
    per_round: int
    rounds: int
    images: int
    test_images: int


SIZES = {
    "fashion-mnist": Size("resnet8", "fashion-mnist", 1, 28, (0.286,), (0.353,), 20, 10, 12, 10_000, 10_000),
    "cifar10": Size(
        "resnet20", "cifar10", 3, 32, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), 20, 10, 16, 10_000, 10_000
    ),
}


def quick(size: Size) -> Size:
    """Return the same with little of everything."""
    return replace(size, devices=6, per_round=4, rounds=4, images=3000, test_images=2000)


def write_data(size: Size, seed: int, folder: Path) -> None:
    """Write the images that either side knows of as a dataset in npz files."""
    train = load_dataset(size.data, split="train")
    _, chosen = split_off(len(train), size.images + CALIBRATION_IMAGES, seed)
    train, test = train.take(chosen), load_dataset(size.data, split="test").take(range(size.test_images))
    for split, images in (("train", train), ("test", test)):
        np.savez(folder / f"{split}.npz", images=images.images, labels=images.labels, classes=10, layout="NCHW")


def make_scenario(size: Size, seed: int, folder: Path) -> Scenario:
    """Return the scenario over the dataset that lies in the folder. Models are scored after the last round only."""
    return Scenario(
        name="flower",
        network=NetworkChoice(
            zoo=size.network, in_channels=size.channels, image_size=size.side, mean=size.mean, std=size.std, seed=seed
        ),
        data=Data(
            name="npz",
            root=str(folder),
            kind="dirichlet",
            alpha=1.0,
            smallest=32,
            test_images=size.test_images,
            calibration_images=CALIBRATION_IMAGES,
        ),
        devices=Devices(number=size.devices),
        availability=Availability(shares=(1.0,)),
        rounds=Rounds(number=size.rounds, devices_per_round=size.per_round),
        training=Training(batch=32, lr=0.05, momentum=0.9, weight_decay=5e-4, epochs=1.0, statistics_images=0),
        evaluate_every=size.rounds,
        seed=seed,
    )


def select_devices(scenario: Scenario) -> list[list[int]]:
    """Return which devices take part in each round, by letting the aggregator's rounds pass without any training."""
    given = scenario.rounds
    rounds = AggregatorRounds(
        RoundSettings(
            number=given.number,
            seconds=given.seconds,
            upload_seconds=given.upload_seconds,
            least_devices=given.least_devices,
            devices_per_round=given.devices_per_round,
            seed=scenario.seed,
        )
    )
    rounds.broker_back(-SETTLE_S)
    numbers = {world_of(scenario).name(device): device for device in range(scenario.devices.number)}
    for name in numbers:
        rounds.device_seen(name)
    selected: list[list[int]] = []
    while True:
        for due in rounds.tick(0.0):
            if isinstance(due, Finish):
                return selected
            if isinstance(due, Open):
                selected.append([numbers[name] for name in due.selected])
                for name in due.selected:
                    rounds.update_stored(name)
            else:
                rounds.closed()


def write_for_flower(scenario: Scenario, folder: Path, *, cores: int) -> dict[str, Any]:
    """Write weights, shards, held-out images and `plan.json`, and return what is in the latter."""
    world, training = world_of(scenario), scenario.training
    for device in range(scenario.devices.number):
        shard = world.images(device)
        np.savez(folder / f"shard-{device}.npz", images=shard.images, labels=shard.labels)
    test, calibration = world.held_out.test, world.held_out.calibration
    assert test is not None
    assert calibration is not None
    np.savez(folder / "held-out.npz", images=test.images, labels=test.labels, calibration=calibration.images)
    np.savez(folder / "weights.npz", **{name: world.network.weights[name] for name in world.network.plan.parameters})
    plan = {
        "blocks": BLOCKS[str(scenario.network.zoo)],
        "channels": scenario.network.in_channels,
        "mean": scenario.network.mean,
        "std": scenario.network.std,
        "lr": training.lr,
        "momentum": training.momentum,
        "weight_decay": training.weight_decay,
        "seed": scenario.seed,
        "selected": select_devices(scenario),
        "devices": [
            {
                "seed": zlib.crc32(world.name(device).encode()),
                "batch": world.batch(device),
                "mini_batches": world.planned(device),
            }
            for device in range(scenario.devices.number)
        ],
        "cores": cores,
    }
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return plan
