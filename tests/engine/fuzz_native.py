"""Let the native engine do steps and passes over random networks, for as long as one likes: `fuzz_native.py --help`.

Made to run under the address and undefined-behaviour sanitizers, on a module that was compiled with them. It compares
nothing but what needs no PyTorch: every instruction set must agree with the plain kernels about the loss, and what lies
outside a subset must keep its bits. What it finds, it finds again from the printed seed.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from random import Random

import numpy as np
import random_networks

from distreal_edge import Plan, _native
from distreal_edge.network.native_plan import by_operation
from distreal_edge.network.operations import Dropout
from distreal_edge.network.preprocessing import draw_augmentation

ORDINARY = random_networks.Limits()
TINY = random_networks.Limits(channels=(1, 2), sides=(1, 2), kernels=(1, 2, 5), value_elements=200)
WIDE = random_networks.Limits(channels=(31, 32, 33, 63, 64), sides=(1, 2, 3), value_elements=2000, operations=6)
LARGE = random_networks.Limits(channels=(1, 3), sides=(31, 40, 64), value_elements=20000, operations=6)
HOLED = random_networks.Limits(kernels=(1, 3, 7, 11), paddings=(0, 3, 9), sides=(1, 4, 16, 17), value_elements=3000)
LIMITS = (ORDINARY, ORDINARY, TINY, WIDE, LARGE, HOLED)


def main() -> None:
    """Read the arguments and go on until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--once", action="store_true", help="do the first seed only")
    parser.add_argument("--say", action="store_true", help="print every seed before it runs")
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.seconds
    done = 0
    for seed in itertools.count(arguments.seed):
        if arguments.say:
            say(f"seed {seed}")
        try:
            one_network(Random(seed))
        except Exception:
            say(f"failed at --seed {seed}")
            raise
        done += 1
        if arguments.once or time.monotonic() > ends:
            break
    say(f"{done} networks, from seed {arguments.seed} on: nothing found")


def say(line: str) -> None:
    """Print a line at once: the next thing may be a crash."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def one_network(chance: Random) -> None:
    """Do some steps and passes over one random network, with every instruction set."""
    plan = random_networks.random_plan(chance, chance.choice(LIMITS))
    seed = chance.randrange(2**32)
    network = random_networks.random_weights(plan, seed)
    engines = []
    for name in _native.instruction_sets():
        weights = {key: array.copy() for key, array in network.weights.items()}
        momentum = {key: np.zeros(parameter.shape, np.float32) for key, parameter in plan.parameters.items()}
        engine = _native.Engine(plan.native, by_operation(plan, weights), by_operation(plan, momentum), name)
        engines.append((engine, weights, momentum))
    for _ in range(chance.randrange(1, 4)):
        one_batch(plan, engines, chance)


def one_batch(plan: Plan, engines: list, chance: Random) -> None:
    """Do one step, and one pass of each kind, from the same weights with all engines."""
    smallest = random_networks.smallest_batch(plan)
    count = max(smallest, chance.choice((1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 40)))
    seed = chance.randrange(2**32)
    images, labels = random_networks.random_batch(plan, count, seed, as_bytes=chance.random() < 0.5)
    kept = random_networks.random_subset(plan, chance).mask(plan.sizes)
    rng = np.random.default_rng(seed)
    corners, flips = draw_augmentation(count, plan.preprocessing, rng)
    draws = []
    for operation in plan.operations:
        if isinstance(operation, Dropout):
            survivors = np.count_nonzero(kept[plan.layout.of[operation.name]])
            draws.append(rng.random((count, survivors, *plan.shapes[operation.name][1:]), dtype=np.float32))
    plan.native.step_bytes(kept, count)
    threads = chance.randrange(1, 5)
    before, velocity = ({name: array.copy() for name, array in tensors.items()} for tensors in engines[-1][1:])
    losses = []
    for engine, weights, momentum in engines:
        for name, array in before.items():
            weights[name][...] = array
        for name, array in velocity.items():
            momentum[name][...] = array
        scores = np.empty((count, plan.classes), np.float32)
        engine.predict(images, scores, threads)
        engine.batch_moments(images, threads)
        losses.append(
            engine.step(
                images,
                labels,
                kept,
                corners=None if corners is None else corners.astype(np.int32),
                flips=flips,
                draws=draws,
                lr=0.01,
                momentum=0.9,
                weight_decay=0.01,
                threads=threads,
            )
        )
        for name, parameter in plan.parameters.items():
            outside = ~np.broadcast_to(parameter.touched(kept), parameter.shape)
            assert weights[name][outside].tobytes() == before[name][outside].tobytes(), name
            assert momentum[name][outside].tobytes() == velocity[name][outside].tobytes(), name
    for loss in losses:
        assert math.isclose(loss, losses[-1], rel_tol=0.01, abs_tol=0.01) or not math.isfinite(losses[-1]), losses


if __name__ == "__main__":
    main()
