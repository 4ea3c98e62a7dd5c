"""A step or pass that was cancelled is as if it had never been, whenever the cancellation came."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from distreal_edge import Engine, Network, Plan, Preprocessing, Subset, _native, zoo
from distreal_edge.engine import Cancellation
from distreal_edge.errors import CancellationError
from distreal_edge.network import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_ATTEMPTS = 1000


def state_of(engine: Engine) -> list[bytes]:
    """Return every bit that a step may change: weights, momentum, and where the random generator stands."""
    tensors = [*engine.weights.values(), *engine._backend.momentum.values()]
    return [*(tensor.tobytes() for tensor in tensors), repr(engine._rng.bit_generator.state).encode()]


def cancelled_after(seconds: float, call: Callable[..., Any]) -> Any:
    """Return what a call returns that another thread cancels after a time; None when that was soon enough."""
    cancellation = Cancellation()
    canceller = threading.Timer(seconds, cancellation.cancel)
    canceller.start()
    try:
        return call(cancellation=cancellation)
    except CancellationError:
        assert cancellation.cancelled
        return None
    finally:
        canceller.cancel()
        canceller.join()


@pytest.fixture(scope="module")
def augmented(every_operation: Plan, shuffled: Any) -> Network:
    """Return a network with every operation, element-wise dropout among them, on augmented images."""
    preprocessing = Preprocessing(crop_padding=2, horizontal_flip=True)
    network: Network = shuffled(
        Plan(every_operation.input_shape, every_operation.operations, every_operation.rescale, preprocessing), 0
    )
    return network


@pytest.fixture
def other_momentum(augmented: Network, draw_batch: Any) -> Callable[[Engine], None]:
    """Give an engine of the augmented network momentum that is not zero."""
    images, labels = draw_batch(augmented.plan, 4, 1)

    def step(engine: Engine) -> None:
        engine.step(images, labels, Subset.full(augmented.plan.sizes), lr=0.05)

    return step


def test_what_is_cancelled_before_its_start_changes_nothing(
    backend: str, augmented: Network, other_momentum: Any, draw_batch: Any, draw_subset: Any
) -> None:
    engine, undisturbed = Engine(augmented, backend), Engine(augmented, backend)
    other_momentum(engine), other_momentum(undisturbed)
    images, labels = draw_batch(augmented.plan, 5, 0)
    subset = draw_subset(augmented.plan, np.random.default_rng(0))
    cancellation = Cancellation()
    cancellation.cancel()
    cancellation.cancel()  # again is no mistake

    with pytest.raises(CancellationError, match="a step over 5 images was cancelled and has changed nothing"):
        engine.step(images, labels, subset, lr=0.1, cancellation=cancellation)
    with pytest.raises(CancellationError, match="a pass over 5 images was cancelled"):
        engine.predict(images, cancellation=cancellation)
    with pytest.raises(CancellationError, match="a pass over 5 images was cancelled"):
        engine.measure_statistics([images], cancellation=cancellation)

    assert state_of(engine) == state_of(undisturbed)
    assert engine.step(images, labels, subset, lr=0.1) == undisturbed.step(images, labels, subset, lr=0.1)
    assert state_of(engine) == state_of(undisturbed)


def test_cancelling_after_the_end_has_no_effect(
    backend: str, augmented: Network, draw_batch: Any, draw_subset: Any
) -> None:
    engine, undisturbed = Engine(augmented, backend), Engine(augmented, backend)
    images, labels = draw_batch(augmented.plan, 5, 0)
    subset = draw_subset(augmented.plan, np.random.default_rng(0))
    cancellation = Cancellation()
    loss = engine.step(images, labels, subset, lr=0.1, cancellation=cancellation)
    scores = engine.predict(images, cancellation=cancellation)
    statistics = engine.measure_statistics([images], cancellation=cancellation)

    cancellation.cancel()

    assert loss == undisturbed.step(images, labels, subset, lr=0.1)
    assert np.array_equal(scores, undisturbed.predict(images))
    for name, statistic in undisturbed.measure_statistics([images]).items():
        assert np.array_equal(statistics[name], statistic)
    assert engine.step(images, labels, subset, lr=0.1) == undisturbed.step(images, labels, subset, lr=0.1)
    assert state_of(engine) == state_of(undisturbed)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
@pytest.mark.parametrize(
    ("make", "count", "policy"),
    [
        (lambda: zoo.resnet8(image_size=16), 64, "ordered"),
        (lambda: zoo.densenet40(image_size=8), 16, "random"),
        (lambda: zoo.femnist_cnn(image_size=16), 32, "ordered"),
        (None, 64, "random"),
    ],
    ids=["resnet8", "densenet40", "femnist_cnn", "every operation"],
)
def test_a_step_that_is_cancelled_at_any_moment_is_as_if_it_had_never_been(
    make: Callable[[], Network] | None,
    count: int,
    policy: str,
    instruction_set: str,
    threads: int,
    augmented: Network,
    draw_batch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISTREAL_EDGE_INSTRUCTION_SET", instruction_set)
    network = augmented if make is None else make()
    engine, undisturbed = Engine(network, "native"), Engine(network, "native")
    images, labels = draw_batch(network.plan, count, 0)
    rng = np.random.default_rng(threads)
    cancelled = attempts = 0
    while cancelled < 5:
        attempts += 1
        assert attempts < MOST_ATTEMPTS
        subset = network.draw([rng.choice([0.0, 0.5])] * len(network.groups), rng, policy, attempts)
        settings = {"lr": 0.01, "threads": threads}
        began = time.perf_counter()
        loss = undisturbed.step(images, labels, subset, **settings)
        moment = rng.uniform(0.0, time.perf_counter() - began)
        before = state_of(engine)
        same = cancelled_after(moment, partial(engine.step, images, labels, subset, **settings))
        if same is None:
            cancelled += 1
            assert state_of(engine) == before
            same = engine.step(images, labels, subset, **settings)
        assert same == loss
    assert state_of(engine) == state_of(undisturbed)


@pytest.mark.parametrize("threads", [1, 2])
def test_passes_that_are_cancelled_at_any_moment_leave_the_engine_as_it_was(threads: int, draw_batch: Any) -> None:
    network = zoo.resnet20(image_size=16)
    engine = Engine(network, "native")
    images, _ = draw_batch(network.plan, 600, 0)  # several passes of predict
    scores, statistics = engine.predict(images), engine.measure_statistics([images[:64], images[64:128]])
    before = state_of(engine)
    rng = np.random.default_rng(threads)
    predict = partial(engine.predict, images, threads=threads)
    measure = partial(engine.measure_statistics, [images[:64], images[64:128]], threads=threads)
    for call in (predict, measure):
        cancelled = attempts = 0
        while cancelled < 5:
            attempts += 1
            assert attempts < MOST_ATTEMPTS
            began = time.perf_counter()
            call()
            cancelled += cancelled_after(rng.uniform(0.0, time.perf_counter() - began), call) is None
    assert np.array_equal(engine.predict(images), scores)
    for name, statistic in engine.measure_statistics([images[:64], images[64:128]]).items():
        assert np.array_equal(statistics[name], statistic)
    assert state_of(engine) == before


def test_a_measurement_can_be_cancelled_between_two_batches(backend: str, augmented: Network, draw_batch: Any) -> None:
    images, _ = draw_batch(augmented.plan, 4, 0)
    cancellation = Cancellation()
    read = []

    def batches() -> Iterator[Any]:
        for number in range(3):
            read.append(number)
            yield images
            cancellation.cancel()

    with pytest.raises(CancellationError):
        Engine(augmented, backend).measure_statistics(batches(), cancellation=cancellation)
    assert read == [0, 1]


def test_the_reference_lets_nothing_change_when_cancelled_while_it_differentiates(
    augmented: Network, other_momentum: Any, draw_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, undisturbed = Engine(augmented, "reference"), Engine(augmented, "reference")
    other_momentum(engine), other_momentum(undisturbed)
    images, labels = draw_batch(augmented.plan, 5, 0)
    full = Subset.full(augmented.plan.sizes)
    cancellation = Cancellation()
    differentiate = reference.torch.autograd.grad

    def cancelled_meanwhile(*arguments: Any, **settings: Any) -> Any:
        gradients = differentiate(*arguments, **settings)
        cancellation.cancel()
        return gradients

    with monkeypatch.context() as patch:
        patch.setattr(reference.torch.autograd, "grad", cancelled_meanwhile)
        with pytest.raises(CancellationError):
            engine.step(images, labels, full, lr=0.1, cancellation=cancellation)

    assert state_of(engine) == state_of(undisturbed)
    assert engine.step(images, labels, full, lr=0.1) == undisturbed.step(images, labels, full, lr=0.1)


def test_cancelled_steps_leave_neither_memory_nor_threads_behind(draw_batch: Any) -> None:
    network = zoo.resnet8(image_size=16)
    engine = Engine(network, "native")
    images, labels = draw_batch(network.plan, 32, 0)
    full = Subset.full(network.plan.sizes)
    step = partial(engine.step, images, labels, full, lr=0.01, threads=2)
    process = psutil.Process()
    step()
    rng = np.random.default_rng(0)

    def cancel_some() -> int:
        return sum(cancelled_after(rng.uniform(0.0, 0.003), step) is None for _ in range(200))

    cancel_some()
    memory, threads = process.memory_info().rss, process.num_threads()
    assert cancel_some() > 0
    assert process.memory_info().rss - memory < 2**20
    assert process.num_threads() == threads


def test_one_cancellation_ends_several_engines_and_disturbs_no_other(draw_batch: Any) -> None:
    network = zoo.vgg_small(image_size=16)
    images, labels = draw_batch(network.plan, 32, 0)
    full = Subset.full(network.plan.sizes)
    cancellation = Cancellation()
    ended = []

    def train_until_cancelled(engine: Engine) -> None:
        try:
            while True:
                engine.step(images, labels, full, lr=0.01, cancellation=cancellation)
        except CancellationError:
            ended.append(engine)

    workers = [threading.Thread(target=train_until_cancelled, args=(Engine(network),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    other = Engine(network)
    losses = [other.step(images, labels, full, lr=0.01, cancellation=Cancellation()) for _ in range(2)]
    cancellation.cancel()
    for worker in workers:
        worker.join(100)
    assert len(ended) == 2
    undisturbed = Engine(network)
    assert losses == [undisturbed.step(images, labels, full, lr=0.01) for _ in range(2)]
