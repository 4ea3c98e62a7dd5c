"""Threads: the same bits for the same counts of them, engines that do not disturb each other, a free interpreter."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge import Engine, Network, Plan, Preprocessing, zoo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STEPS = 12


@pytest.fixture
def impatient() -> Iterator[None]:
    """Let Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def networks(every_operation: Plan, shuffled: Any) -> list[Network]:
    augmented = Plan(
        every_operation.input_shape,
        every_operation.operations,
        every_operation.rescale,
        Preprocessing(crop_padding=2, horizontal_flip=True),
    )
    return [shuffled(augmented, 0), zoo.resnet8(image_size=8), zoo.densenet40(image_size=8), zoo.femnist_cnn()]


def trained(network: Network, threads: Sequence[int], draw_batch: Any, draw_subset: Any) -> tuple[Any, ...]:
    """Train with these numbers of threads, one step each; return every bit that is left behind."""
    engine = Engine(network, "native", seed=3)
    rng = np.random.default_rng(4)
    losses = []
    for number, count in enumerate(threads):
        images, labels = draw_batch(network.plan, 3 + 7 * (number % 4), number)
        losses.append(engine.step(images, labels, draw_subset(network.plan, rng), lr=0.05, threads=count))
    images, _ = draw_batch(network.plan, 19, 99)
    scores = engine.predict(images, threads=threads[0])
    statistics = engine.measure_statistics([images], threads=threads[0])
    return (
        tuple(losses),
        *(tensor.tobytes() for tensor in engine.weights.values()),
        *(tensor.tobytes() for tensor in engine._backend.momentum.values()),
        *(tensor.tobytes() for tensor in statistics.values()),
        scores.tobytes(),
    )


@pytest.mark.parametrize(
    "threads",
    [[1] * STEPS, [2] * STEPS, [3] * STEPS, [1, 2, 4, 3, 1, 1, 2, 5, 16, 2, 1, 4]],
    ids=["one", "two", "three", "changing"],
)
def test_the_same_numbers_of_threads_give_the_same_bits(
    threads: list[int], networks: list[Network], draw_batch: Any, draw_subset: Any
) -> None:
    for network in networks:
        first = trained(network, threads, draw_batch, draw_subset)
        assert trained(network, threads, draw_batch, draw_subset) == first


@pytest.mark.usefixtures("impatient")
def test_engines_in_threads_of_their_own_compute_what_they_compute_alone(
    networks: list[Network], draw_batch: Any, draw_subset: Any
) -> None:
    schedules = [[2] * STEPS, [1] * STEPS, [1, 2, 3] * (STEPS // 3), [2, 1] * (STEPS // 2)]
    alone = [trained(*job, draw_batch, draw_subset) for job in zip(networks, schedules, strict=True)]
    together: list[Any] = [None] * len(networks)
    start = threading.Barrier(len(networks))

    def work(number: int) -> None:
        start.wait(30)
        together[number] = trained(networks[number], schedules[number], draw_batch, draw_subset)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(networks))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert together == alone


@pytest.mark.usefixtures("impatient")
def test_one_engine_called_from_two_threads_does_one_thing_after_the_other(
    networks: list[Network], draw_batch: Any
) -> None:
    # Nobody promises an order, but neither a crash nor a spoilt prediction may come of it.
    engine = Engine(networks[1], "native")
    images, _ = draw_batch(networks[1].plan, 33, 0)
    expected = engine.predict(images)
    wrong = []

    def work() -> None:
        wrong.extend(1 for _ in range(40) if not np.array_equal(engine.predict(images), expected))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert not wrong


def test_other_python_threads_go_on_during_a_step(draw_batch: Any, draw_subset: Any) -> None:
    network = zoo.vgg_small()
    engine = Engine(network, "native")
    images, labels = draw_batch(network.plan, 64, 0)
    subset = network.draw([0.0] * len(network.groups), np.random.default_rng(0))
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    began = time.perf_counter()
    engine.step(images, labels, subset, lr=0.01)
    ended = time.perf_counter()
    done.set()
    ticker.join()
    # Within the middle of the call: before and after it, Python code runs that lets others in anyway.
    quarter = (ended - began) / 4
    assert any(began + quarter < moment < ended - quarter for moment in ticks)
