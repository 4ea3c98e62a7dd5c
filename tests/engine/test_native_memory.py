"""The native engine's memory: what was announced and no more, however often and whatever; and none left is an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import psutil
import pytest

from distreal_edge import Engine, Network, PlanBuilder, Subset, zoo
from distreal_edge.errors import DataError

# Programs for processes of their own, where memory is counted or runs out.
START = """
import json, resource, sys
import numpy as np, psutil
from distreal_edge import Engine, zoo
from distreal_edge.errors import ConfigError
network = zoo.vgg_small(image_size=32)
full = network.draw([0.0] * len(network.groups), np.random.default_rng(0))
half = network.draw([0.5] * len(network.groups), np.random.default_rng(0))
def batch(count):
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, count)
"""
FIRST_STEP = """
count = int(sys.argv[1])
announced = network.cost(full, count).peak_bytes
engine = Engine(network, "native")
images, labels = batch(count)
engine.step(*batch(2), half, lr=0.1)  # code and threads are there
before = psutil.Process().memory_info().rss
engine.step(images, labels, full, lr=0.1)
grown = psutil.Process().memory_info().rss - before
held = sum(tensor.nbytes for tensor in engine.weights.values()) * 2
print(json.dumps([announced - held, grown]))
"""
NO_MEMORY = """
engine, fresh = Engine(network, "native", seed=1), Engine(network, "native", seed=1)
engine.step(*batch(4), half, lr=0.1), fresh.step(*batch(4), half, lr=0.1)
images, labels = batch(2000)
room = psutil.Process().memory_info().vms + 2**26
resource.setrlimit(resource.RLIMIT_AS, (room, room))
said = []
for call in (
    lambda: engine.step(images, labels, full, lr=0.1),
    lambda: engine.predict(images),
    lambda: engine.measure_statistics([images]),
    lambda: engine.step(images, labels, full, lr=0.1, threads=2),
):
    try:
        call()
        said.append(None)
    except ConfigError as error:
        said.append(str(error))
same = engine.step(*batch(4), half, lr=0.1) == fresh.step(*batch(4), half, lr=0.1)
weights = all(np.array_equal(engine.weights[name], fresh.weights[name]) for name in network.weights)
print(json.dumps([said, same, weights]))
"""


def run(program: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", START + program, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("count", [32, 100])
def test_a_step_takes_the_memory_that_was_announced(count: int) -> None:
    announced, grown = run(FIRST_STEP, str(count))
    assert 0.5 * announced < grown < 1.05 * announced + 2**20


def test_a_batch_that_does_not_fit_into_memory_is_an_error_that_changes_nothing() -> None:
    said, same_loss, same_weights = run(NO_MEMORY)
    assert said[0] == "a step over 2000 images does not fit into this machine's memory; make the batch smaller"
    assert said[1] is None or said[1].endswith("does not fit into this machine's memory; give fewer at a time")
    assert said[2] == "a pass over 2000 images does not fit into this machine's memory; give fewer at a time"
    assert said[3] == said[0]
    assert same_loss
    assert same_weights


def test_more_images_than_go_together_are_refused() -> None:
    builder = PlanBuilder((1, 1, 1))
    network = Network.initialise(builder.finish(builder.linear("fc", builder.flatten(builder.input), 2)))
    engine = Engine(network, "native")
    images = np.zeros((2**20 + 1, 1, 1, 1), np.uint8)
    with pytest.raises(DataError, match="1048577 are more than the 1048576 that go together; give fewer at a time"):
        engine.step(images, np.zeros(len(images), np.int64), Subset(()), lr=0.1)
    assert engine.predict(images).shape == (2**20 + 1, 2)  # a few at a time anyway


def test_more_threads_than_anybody_has_are_as_good_as_many(draw_batch: Any) -> None:
    network = zoo.resnet8(image_size=8)
    images, labels = draw_batch(network.plan, 8, 0)
    full = Subset.full(network.plan.sizes)
    assert np.isfinite(Engine(network, "native").step(images, labels, full, lr=0.1, threads=10**12))


def test_memory_does_not_grow_from_step_to_step(draw_batch: Any, draw_subset: Any) -> None:
    network = zoo.resnet20(image_size=8)
    engine = Engine(network, "native")
    rng = np.random.default_rng(0)
    batches = [draw_batch(network.plan, count, count) for count in (32, 7, 16, 31)]
    full = network.draw([0.0] * len(network.groups), rng)

    def steps(number: int) -> None:
        for step in range(number):
            images, labels = batches[step % len(batches)]
            subset = full if step % 10 == 0 else draw_subset(network.plan, rng)
            engine.step(images, labels, subset, lr=0.01, threads=1 + step % 2)
        engine.predict(batches[0][0])
        engine.measure_statistics([batches[0][0]])

    steps(40)
    before = psutil.Process().memory_info().rss
    steps(400)
    assert psutil.Process().memory_info().rss - before < 2**20


def test_an_engine_gives_its_memory_back(draw_batch: Any) -> None:
    network = zoo.vgg_small(image_size=16)
    images, labels = draw_batch(network.plan, 64, 0)
    full = network.draw([0.0] * len(network.groups), np.random.default_rng(0))

    def use() -> None:
        Engine(network, "native").step(images, labels, full, lr=0.01)

    use()
    before = psutil.Process().memory_info().rss
    for _ in range(10):
        use()
    arena = network.cost(full, len(images)).peak_bytes
    assert psutil.Process().memory_info().rss - before < arena
