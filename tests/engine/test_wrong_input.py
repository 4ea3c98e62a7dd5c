"""Everything that can be wrong with a call is an error that says what, where and what to do; nothing changes then."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from distreal_edge import Engine, Network, Plan, PlanBuilder, Subset
from distreal_edge.errors import ConfigError, DataError, DistrealError

SHAPE = (4, 2, 9, 8)
NAN_IMAGE = np.zeros(SHAPE, np.float32)
NAN_IMAGE[2, 0, 1, 1] = np.nan
INFINITE_IMAGE = np.zeros(SHAPE, np.float32)
INFINITE_IMAGE[3] = np.inf

WRONG: dict[str, tuple[dict[str, Any], type[DistrealError], str]] = {
    "images that are a list": (
        {"images": [[1.0]]},
        DataError,
        "images must be a numpy array, uint8 or float32 [N, 2, 9, 8]; got list",
    ),
    "images in float64": (
        {"images": np.zeros(SHAPE)},
        DataError,
        "images must be uint8 or float32 [N, 2, 9, 8]; got float64: convert with astype",
    ),
    "images of the other byte order": ({"images": np.zeros(SHAPE, ">f4")}, DataError, "got >f4: convert with astype"),
    "one image without its batch": ({"images": np.zeros(SHAPE[1:], np.uint8)}, DataError, "got shape [2, 9, 8]"),
    "channels last": ({"images": np.zeros((4, 9, 8, 2), np.uint8)}, DataError, "got shape [4, 9, 8, 2]"),
    "images of another size": ({"images": np.zeros((4, 2, 8, 8), np.uint8)}, DataError, "got shape [4, 2, 8, 8]"),
    "no images": (
        {"images": np.zeros((0, 2, 9, 8), np.uint8), "labels": np.zeros(0, np.int64)},
        DataError,
        "images: there are none; give at least one image",
    ),
    "an image with NaN": ({"images": NAN_IMAGE}, DataError, "images: image 2 holds NaN or infinity"),
    "an infinite image": ({"images": INFINITE_IMAGE}, DataError, "images: image 3 holds NaN or infinity"),
    "labels that are a list": (
        {"labels": [0, 1, 2, 3]},
        DataError,
        "labels must be a numpy array, int64 [N]; got list",
    ),
    "labels in int32": (
        {"labels": np.zeros(4, np.int32)},
        DataError,
        "labels must be a numpy array, int64 [N]; got int32",
    ),
    "too few labels": ({"labels": np.zeros(3, np.int64)}, DataError, "labels must be int64 [4], one for each image"),
    "one-hot labels": ({"labels": np.zeros((4, 4), np.int64)}, DataError, "got shape [4, 4]"),
    "a label too large": (
        {"labels": np.array([0, 1, 4, 2])},
        DataError,
        "label 2 is 4, but the network's classes are 0..3",
    ),
    "a negative label": ({"labels": np.array([0, -1, 1, 2])}, DataError, "label 1 is -1"),
    "a subset that is a vector": ({"subset": (0.5, 0.5)}, DataError, "the subset must be a Subset, got tuple"),
    "a subset of another network": ({"subset": Subset.full((3, 3))}, DataError, "the survivors of 2 groups"),
    "an infinite rate": (
        {"lr": math.inf},
        ConfigError,
        "lr must be a number, 0 or more and finite in float32; got inf",
    ),
    "a rate that is NaN": (
        {"lr": math.nan},
        ConfigError,
        "lr must be a number, 0 or more and finite in float32; got nan",
    ),
    "a rate beyond float32": (
        {"lr": 1e39},
        ConfigError,
        "lr must be a number, 0 or more and finite in float32; got 1e+39",
    ),
    "a negative rate": ({"lr": -0.1}, ConfigError, "lr must be a number, 0 or more and finite in float32; got -0.1"),
    "a rate that is a text": ({"lr": "0.1"}, ConfigError, "got '0.1'"),
    "a momentum of one": ({"momentum": 1.0}, ConfigError, "momentum must be a number, 0 or more and below 1; got 1.0"),
    "a momentum that is NaN": ({"momentum": math.nan}, ConfigError, "momentum must be"),
    "negative weight decay": (
        {"weight_decay": -1.0},
        ConfigError,
        "weight_decay must be a number, 0 or more and finite in float32",
    ),
    "no threads": ({"threads": 0}, ConfigError, "threads must be a whole number of 1 or more; got 0"),
    "half a thread": ({"threads": 1.5}, ConfigError, "threads must be a whole number of 1 or more; got 1.5"),
    "threads that are a switch": ({"threads": True}, ConfigError, "got True"),
}


@pytest.fixture(scope="module")
def network(every_operation: Plan, shuffled: Any) -> Network:
    made: Network = shuffled(every_operation, 0)
    return made


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_step_is_refused_and_changes_nothing(
    case: str, backend: str, network: Network, draw_batch: Any
) -> None:
    changes, error, message = WRONG[case]
    images, labels = draw_batch(network.plan, 4, 0)
    right = {"images": images, "labels": labels, "subset": Subset.full(network.plan.sizes), "lr": 0.1}
    engine, fresh = Engine(network, backend, seed=5), Engine(network, backend, seed=5)
    with pytest.raises(error, match=re.escape(message)):
        engine.step(**(right | changes))
    # The same loss as an engine that never saw the wrong call: same weights, same random draws.
    assert engine.step(**right) == fresh.step(**right)


@pytest.mark.parametrize("case", [case for case in WRONG if set(WRONG[case][0]) <= {"images", "threads"}])
def test_wrong_images_are_refused_in_passes_over_the_full_network_too(
    case: str, backend: str, network: Network, draw_batch: Any
) -> None:
    changes, error, message = WRONG[case]
    images, _ = draw_batch(network.plan, 4, 0)
    right = {"images": images} | changes
    threads = right.get("threads", 1)
    with pytest.raises(error, match=re.escape(message)):
        Engine(network, backend).predict(right["images"], threads=threads)
    with pytest.raises(error, match=re.escape(message.replace("images must", "batch 1 of images must"))):
        Engine(network, backend).measure_statistics([images, right["images"]], threads=threads)


def test_a_batch_norm_over_one_value_is_refused(backend: str) -> None:
    b = PlanBuilder((1, 2, 2))
    x = b.batch_norm("norm", b.linear("fc1", b.flatten(b.input), 3))
    network = Network.initialise(b.finish(b.linear("fc2", x, 2)))
    engine = Engine(network, backend)
    image, label = np.zeros((1, 1, 2, 2), np.uint8), np.zeros(1, np.int64)
    message = "batch norm 'norm' would see a single value per channel; give at least two images at a time"
    with pytest.raises(DataError, match=message):
        engine.step(image, label, Subset(()), lr=0.1)
    with pytest.raises(DataError, match=f"batch 0 of images: {message}"):
        engine.measure_statistics([image])
    assert np.isfinite(engine.predict(image)).all()  # it has statistics of its own


def test_a_single_image_trains_where_every_batch_norm_sees_maps(backend: str) -> None:
    b = PlanBuilder((1, 3, 3))
    x = b.relu(b.batch_norm("norm", b.conv2d("conv", b.input, 4, kernel=2)))
    network = Network.initialise(b.finish(b.linear("fc", b.flatten(x), 2)))
    engine = Engine(network, backend)
    for image in (np.zeros((1, 1, 3, 3), np.uint8), np.random.default_rng(0).random((1, 1, 3, 3), np.float32)):
        for _ in range(10):
            loss = engine.step(image, np.ones(1, np.int64), Subset((np.array([1, 2]),)), lr=0.1)
            assert math.isfinite(loss)


def test_numbers_of_numpy_are_numbers(backend: str, network: Network, draw_batch: Any) -> None:
    images, labels = draw_batch(network.plan, 4, 0)
    everything = Subset.full(network.plan.sizes)
    loss = Engine(network, backend, seed=np.int64(1)).step(  # type: ignore[arg-type]
        images, labels, everything, lr=np.float64(0.1), momentum=0, threads=int(np.int64(1))
    )
    assert math.isfinite(loss)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True, (), (1, -1), [1]])
def test_a_seed_is_a_whole_number_or_several(seed: Any, network: Network) -> None:
    with pytest.raises(ConfigError, match="the seed must be a whole number of 0 or more, or a tuple of them"):
        Engine(network, seed=seed)
