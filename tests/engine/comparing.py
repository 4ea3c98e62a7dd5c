"""One step, done by several engines from the same weights, momentum and draws; and how far they may be apart."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from distreal_edge import Engine, _native
from distreal_edge.network import reference
from distreal_edge.network.native_plan import by_operation
from distreal_edge.network.operations import Dropout
from distreal_edge.network.preprocessing import augment, draw_augmentation
from distreal_edge.network.reference import ReferenceExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from distreal_edge import Network, Subset

EPSILON = float(np.finfo(np.float32).eps)
SAMPLES = 3
CORNERS = {"Relu": (0.0,), "Relu6": (0.0, 6.0), "Hardswish": (-3.0, 3.0)}


@dataclass(frozen=True)
class Problem:
    """Everything that a step starts from. `momentum` is what earlier steps have left behind."""

    network: Network
    images: NDArray[Any]
    labels: NDArray[np.int64]
    subset: Subset
    momentum: Mapping[str, NDArray[np.float32]]
    seed: int = 0
    settings: Mapping[str, float] = field(default_factory=lambda: {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01})


@dataclass(frozen=True)
class Outcome:
    """What a step leaves behind."""

    loss: float
    weights: Mapping[str, NDArray[Any]]
    momentum: Mapping[str, NDArray[Any]]


def make_problem(network: Network, images: Any, labels: Any, subset: Subset, seed: int) -> Problem:
    """Return a problem with momentum as of an earlier step."""
    rng = np.random.default_rng(seed)
    momentum = {
        name: rng.normal(0.0, 0.1, parameter.shape).astype(np.float32)
        for name, parameter in network.plan.parameters.items()
    }
    return Problem(network, images, labels, subset, momentum, seed)


def prepared(problem: Problem, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the images augmented and normalised in float64, as `docs/engine.md` says it."""
    preprocessing = problem.network.plan.preprocessing
    return normalised(problem, augment(problem.images, preprocessing, rng))


def normalised(problem: Problem, images: NDArray[Any]) -> NDArray[np.float64]:
    """Return images normalised in float64."""
    preprocessing = problem.network.plan.preprocessing
    images = images.astype(np.float64)
    if problem.images.dtype == np.uint8:
        images /= 255.0
    if preprocessing.mean:
        images -= np.reshape(preprocessing.mean, (-1, 1, 1))
    if preprocessing.std:
        images /= np.reshape(preprocessing.std, (-1, 1, 1))
    return images


def reference_step(problem: Problem, dtype: torch.dtype = torch.float64, jiggle: int | None = None) -> Outcome:
    """Do the step with PyTorch; `jiggle` seeds a change of images and weights by less than float32 can tell."""
    rng = np.random.default_rng(problem.seed)
    images = prepared(problem, rng)
    executor = ReferenceExecutor(
        problem.network.plan, {name: array.copy() for name, array in problem.network.weights.items()}, dtype
    )
    for name, momentum in problem.momentum.items():
        executor.momentum[name].copy_(torch.from_numpy(momentum))
    if jiggle is not None:
        noise = np.random.default_rng(jiggle)
        images *= noise.uniform(1 - EPSILON, 1 + EPSILON, images.shape)
        for tensor in executor.weights.values():
            tensor.mul_(torch.from_numpy(noise.uniform(1 - EPSILON, 1 + EPSILON, tensor.shape)))
    settings = problem.settings
    loss = executor.step(
        images.astype(np.float32) if dtype == torch.float32 else images,
        problem.labels,
        problem.subset,
        settings["lr"],
        settings["momentum"],
        settings["weight_decay"],
        rng,
    )
    weights = {name: executor.weights[name].numpy() for name in problem.network.plan.tensors}
    return Outcome(loss, weights, {name: tensor.numpy() for name, tensor in executor.momentum.items()})


def predicted(problem: Problem) -> NDArray[np.float64]:
    """Return PyTorch's class scores of the full network in float64."""
    executor = ReferenceExecutor(problem.network.plan, problem.network.weights, torch.float64)
    return executor.predict(normalised(problem, problem.images))


def moments(problem: Problem) -> tuple[Mapping[str, Any], float]:
    """Return what every batch norm of the full network sees, in float64, and the largest mean^2 / variance."""
    executor = ReferenceExecutor(problem.network.plan, problem.network.weights, torch.float64)
    with watched() as seen:
        found = executor.batch_moments(normalised(problem, problem.images))
    return found, seen.cancellation


def engine_step(problem: Problem, *, threads: int = 1) -> Outcome:
    """Do the step with the engine that users have."""
    engine = Engine(problem.network, "native", seed=problem.seed)
    for name, momentum in problem.momentum.items():
        engine._backend.momentum[name][...] = momentum
    loss = engine.step(problem.images, problem.labels, problem.subset, threads=threads, **problem.settings)
    return Outcome(loss, engine.weights, engine._backend.momentum)


def native_step(problem: Problem, instruction_set: str, *, threads: int = 1) -> Outcome:
    """Do the step with the kernels of one instruction set."""
    plan = problem.network.plan
    weights = {name: array.copy() for name, array in problem.network.weights.items()}
    momentum = {name: array.copy() for name, array in problem.momentum.items()}
    engine = _native.Engine(plan.native, by_operation(plan, weights), by_operation(plan, momentum), instruction_set)
    assert engine.instruction_set == instruction_set
    loss = engine.step(problem.images, **native_arguments(problem), threads=threads)
    return Outcome(loss, weights, momentum)


def plain64(problem: Problem) -> tuple[_native.PlainEngine64, dict[str, Any], dict[str, Any]]:
    """Return the plain kernels in float64, with the weights and the momentum that they change."""
    plan = problem.network.plan
    weights = {name: array.astype(np.float64) for name, array in problem.network.weights.items()}
    momentum = {name: array.astype(np.float64) for name, array in problem.momentum.items()}
    return (
        _native.PlainEngine64(plan.native, by_operation(plan, weights), by_operation(plan, momentum)),
        weights,
        momentum,
    )


def plain64_images(problem: Problem) -> NDArray[np.float64]:
    """Return the images in 0..1, as the plain kernels take them in float64."""
    return problem.images.astype(np.float64) / (255.0 if problem.images.dtype == np.uint8 else 1.0)


def plain64_step(problem: Problem, *, threads: int = 1) -> Outcome:
    """Do the step with the plain kernels in float64."""
    engine, weights, momentum = plain64(problem)
    loss = engine.step(plain64_images(problem), **native_arguments(problem), threads=threads)
    return Outcome(loss, weights, momentum)


def native_arguments(problem: Problem) -> dict[str, Any]:
    """Return what native code is handed besides images and threads, drawn as `docs/engine.md` says it."""
    plan = problem.network.plan
    rng = np.random.default_rng(problem.seed)
    kept = problem.subset.mask(plan.sizes)
    corners, flips = draw_augmentation(len(problem.images), plan.preprocessing, rng)
    draws = [
        rng.random((len(problem.images), survivors, *plan.shapes[operation.name][1:]), dtype=np.float32)
        for operation in plan.operations
        if isinstance(operation, Dropout)
        for survivors in [np.count_nonzero(kept[plan.layout.of[operation.name]])]
    ]
    return {
        "labels": problem.labels,
        "kept": kept,
        "corners": None if corners is None else corners.astype(np.int32),
        "flips": flips,
        "draws": draws,
        **problem.settings,
    }


def check_as_close_as_float32(problem: Problem, outcome: Outcome, *, times: float = 16.0) -> None:
    """Assert that a float32 outcome is about as near to float64's as PyTorch's own float32 is.

    How near that is depends on the problem, so it is measured: the distance of a few float32 steps from inputs that
    differ by their last bit. Some roundings of the largest number are allowed besides, and more where what a batch norm
    sees is far from zero or hardly varies: the native engine takes variances from sums and sums of squares, and sums up
    gradients before large parts of them cancel.
    """
    with watched() as seen:
        exact = reference_step(problem)
    lost = max(1.0, seen.cancellation / 16.0, seen.steepness / 16.0)
    times, rounding = times * lost, 64 * EPSILON * lost
    samples = [reference_step(problem, torch.float32, jiggle) for jiggle in range(SAMPLES)]
    largest = max(float(np.max(np.abs(momentum))) for momentum in exact.momentum.values())
    apart = max(abs(sample.loss - exact.loss) for sample in samples)
    assert abs(outcome.loss - exact.loss) <= times * apart + 16 * EPSILON * max(1.0, abs(exact.loss))
    for name in problem.network.plan.parameters:
        for what, scale in (("weights", problem.settings["lr"]), ("momentum", 1.0)):
            ours, true = getattr(outcome, what)[name], getattr(exact, what)[name]
            apart = max(float(np.max(np.abs(getattr(sample, what)[name] - true))) for sample in samples)
            allowed = times * apart + rounding * (float(np.max(np.abs(true))) + scale * largest)
            off = float(np.max(np.abs(ours - true)))
            assert off <= allowed, f"{what} of {name}: off by {off:.3g}, allowed {allowed:.3g}"


def check_same(problem: Problem, outcome: Outcome, expected: Outcome, *, tolerance: float) -> None:
    """Assert that two outcomes agree to a tolerance, relative to the largest number of each tensor."""
    assert abs(outcome.loss - expected.loss) <= tolerance * max(1.0, abs(expected.loss))
    largest = max(float(np.max(np.abs(momentum))) for momentum in expected.momentum.values())
    for name in problem.network.plan.parameters:
        for what, scale in (("weights", problem.settings["lr"]), ("momentum", 1.0)):
            ours, theirs = getattr(outcome, what)[name], getattr(expected, what)[name]
            allowed = tolerance * (float(np.max(np.abs(theirs))) + scale * largest)
            off = float(np.max(np.abs(ours - theirs)))
            assert off <= allowed, f"{what} of {name}: off by {off:.3g}, allowed {allowed:.3g}"


def check_untouched(problem: Problem, outcome: Outcome) -> None:
    """Assert that what lies outside the subset has kept every bit."""
    plan = problem.network.plan
    kept = problem.subset.mask(plan.sizes)
    for name, parameter in plan.parameters.items():
        outside = ~np.broadcast_to(parameter.touched(kept), parameter.shape)
        assert outcome.weights[name][outside].tobytes() == problem.network.weights[name][outside].tobytes(), name
        assert outcome.momentum[name][outside].tobytes() == problem.momentum[name][outside].tobytes(), name
    for name in plan.statistics:
        assert outcome.weights[name].tobytes() == problem.network.weights[name].tobytes(), name


def is_touchy(problem: Problem, *, corners: bool = True) -> bool:
    """Return whether two right answers to this problem may be far apart.

    That is so where a step comes so near to a corner of an activation that float32 may take its other side: gradients
    jump there. The same goes for the two largest numbers of a max-pool's window. Numbers that are exactly equal, or
    exactly zero, are no matter of rounding. And it is so where a batch norm sees hardly anything but its mean, whatever
    the precision: it makes the rounding errors as large as everything else.
    """
    with watched() as seen:
        reference_step(problem)
    return (corners and seen.corner) or seen.cancellation > 100.0


@dataclass
class Seen:
    """What makes a step hard for float32: `is_touchy` tells of corners, the others are the worst of batch norms.

    `cancellation` is mean^2 / variance and `steepness` 1 / deviation of what one sees.
    """

    corner: bool = False
    cancellation: float = 0.0
    steepness: float = 0.0


@contextmanager
def watched() -> Iterator[Seen]:
    """Look into the reference while it computes."""
    seen = Seen()
    activate, normalise = reference._without_weights, reference._train_batch_norm

    def watch_activation(operation: Any, x: torch.Tensor) -> torch.Tensor:
        seen.corner = seen.corner or _meets_a_corner(operation, x.detach())
        return activate(operation, x)

    def watch_batch_norm(operation: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        variance, mean = torch.var_mean(x.detach(), dim=axes, correction=0)
        variance += operation.epsilon
        seen.cancellation = max(seen.cancellation, float((mean * mean / variance).max()))
        seen.steepness = max(seen.steepness, float(variance.rsqrt().max()))
        return normalise(operation, x, weight, bias)

    reference._without_weights, reference._train_batch_norm = watch_activation, watch_batch_norm
    try:
        yield seen
    finally:
        reference._without_weights, reference._train_batch_norm = activate, normalise


def _meets_a_corner(operation: Any, x: torch.Tensor) -> bool:
    near = 1e-5 * max(1e-3, float(x.abs().max()))
    kind = type(operation).__name__
    if kind == "MaxPool":
        (top, left), infinity = operation.padding, float("inf")
        padded = functional.pad(x, (left, left, top, top), value=-infinity)
        windows = padded.unfold(2, operation.kernel[0], operation.stride[0])
        windows = windows.unfold(3, operation.kernel[1], operation.stride[1]).flatten(4)
        if windows.shape[-1] == 1:
            return False
        first, second = windows.topk(2, dim=-1).values.unbind(-1)
        return bool(((first > second) & (first - second < near)).any())
    distances = [(x - corner).abs() for corner in CORNERS.get(kind, ())]
    return any(bool(((distance > 0.0) & (distance < near)).any()) for distance in distances)
