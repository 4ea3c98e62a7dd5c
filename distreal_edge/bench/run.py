"""Time one problem on this machine."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge import _native
from distreal_edge.bench.problems import DIRECTIONS, Convolution, Step, kept_channels, taps_inside
from distreal_edge.bench.timing import Timing, repeat, timed
from distreal_edge.dropout import draw_subset
from distreal_edge.engine import Engine
from distreal_edge.errors import ConfigError
from distreal_edge.network.operations import Conv2d, Linear
from distreal_edge.zoo import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from distreal_edge.dropout import Subset
    from distreal_edge.network import Network

__all__ = [
    "ConvolutionResult",
    "Figures",
    "StepResult",
    "check_instruction_set",
    "prepare_step",
    "run_convolution",
    "run_step",
    "time_direction",
]

_VARIABLE: Final = "DISTREAL_EDGE_INSTRUCTION_SET"
_PEAK_S: Final = 0.01
_SMALL_RATE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Figures:
    """One timing, and what it means.

    `gmacs_per_s` counts windows over padding in full, as `Cost` does; `peak_share` does not: it is the share of the
    measured peak of as many cores as there were threads.
    """

    timing: Timing
    gmacs_per_s: float
    peak_share: float


@dataclass(frozen=True, slots=True)
class ConvolutionResult:
    """The figures of each direction of a convolution; `peak_flops` is the peak of one core."""

    problem: str
    instruction_set: str
    threads: int
    peak_flops: float
    directions: Mapping[str, Figures]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures of a whole training step; `arena_bytes` is the memory that `Network.cost` says it takes."""

    problem: str
    backend: str
    instruction_set: str
    threads: int
    peak_flops: float
    figures: Figures
    images_per_s: float
    arena_bytes: int


def check_instruction_set(name: str) -> str:
    """Return the instruction set of this name, or raise `ConfigError`; an empty name is the one that engines use."""
    if not name:
        try:
            return _native.instruction_set()
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if name not in _native.instruction_sets():
        possible = ", ".join(_native.instruction_sets())
        raise ConfigError(f"the instruction set {name!r} does not run on this processor; use one of {possible}")
    return name


def run_convolution(problem: Convolution, *, threads: int, instruction_set: str, seconds: float) -> ConvolutionResult:
    """Time the kernels of every direction, for about `seconds` each, weights packed and gradients applied each time."""
    peak = _native.measure_peak(instruction_set, _PEAK_S)
    directions: dict[str, Figures] = {}
    for direction in DIRECTIONS:
        timing = repeat(partial(time_direction, problem, direction, threads, instruction_set), seconds)
        directions[direction] = _figures(timing, problem.macs, problem.macs_inside, peak * threads)
    return ConvolutionResult(str(problem), instruction_set, threads, peak, directions)


def time_direction(
    problem: Convolution, direction: str, threads: int, instruction_set: str, repeats: int
) -> list[float]:
    """Return the seconds of each run of one direction, after one that is not counted."""
    return _native.time_convolution(
        direction,
        problem.images,
        problem.in_channels,
        problem.out_channels,
        problem.kept_in,
        problem.kept_out,
        *problem.sides,
        problem.kernel,
        problem.stride,
        problem.padding,
        problem.dilation,
        problem.groups,
        repeats,
        threads,
        instruction_set,
    )


def run_step(
    problem: Step, *, threads: int, instruction_set: str, seconds: float, backend: str = "native"
) -> StepResult:
    """Time whole training steps for about `seconds`, after two that are not counted."""
    network, subset = prepare_step(problem)
    with _chosen(instruction_set):
        engine = Engine(network, backend)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (problem.images, *network.plan.input_shape), dtype=np.uint8)  # N, C, H, W
        labels = rng.integers(0, network.plan.classes, problem.images)
        step = partial(engine.step, images, labels, subset, lr=_SMALL_RATE, threads=threads)
        timed(step, 2)
        timing = repeat(partial(timed, step), seconds)
        peak = _native.measure_peak(instruction_set, _PEAK_S)
    cost = network.cost(subset, problem.images)
    inside = problem.images * _macs_inside(network, subset)
    return StepResult(
        problem=str(problem),
        backend=backend,
        instruction_set=instruction_set,
        threads=threads,
        peak_flops=peak,
        figures=_figures(timing, problem.images * cost.macs, inside, peak * threads),
        images_per_s=problem.images / timing.median_s,
        arena_bytes=cost.peak_bytes,
    )


def prepare_step(problem: Step) -> tuple[Network, Subset]:
    """Return the network of a step, and the filters of it that survive."""
    shape = {}
    if problem.input_shape is not None:
        shape = {"in_channels": problem.input_shape[0], "image_size": problem.input_shape[1]}
    network = NETWORKS[problem.network](**shape)
    sizes = network.plan.sizes
    counts = [kept_channels(problem.keep, size) for size in sizes]
    return network, draw_subset(sizes, counts, np.random.default_rng(0), "ordered")


def _figures(timing: Timing, macs: int, macs_inside: int, peak: float) -> Figures:
    return Figures(timing, macs / timing.median_s / 1e9, 2 * macs_inside / timing.median_s / peak)


def _macs_inside(network: Network, subset: Subset) -> int:
    # As `Cost.macs`, without the multiplications by padding.
    plan, kept = network.plan, subset.mask(network.plan.sizes)
    total = 0
    for operation in plan.operations:
        if not isinstance(operation, (Conv2d, Linear)):
            continue
        surviving = plan.parameters[f"{operation.name}.weight"].surviving(kept)
        if isinstance(operation, Conv2d):
            window = (operation.kernel, operation.stride, operation.padding, operation.dilation)
            sides = (plan.shapes[operation.inputs[0]][1:], plan.shapes[operation.name][1:])
            taps = [taps_inside(*axis) for axis in zip(*sides, *window, strict=True)]
            surviving = surviving // prod(operation.kernel) * prod(taps)
        total += surviving * (3 if operation.inputs[0] in plan.differentiable else 2)
    return total


@contextmanager
def _chosen(instruction_set: str) -> Iterator[None]:
    # Engines ask the environment.
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = instruction_set
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
