"""Train networks of the zoo beside PyTorch, on the same batches and the same random subsets, and compare the losses.

    .venv/bin/python benchmarks/agreement.py --json agreement.json

Three engines start from the same weights: the native one, the reference on PyTorch, and the reference once more with
every weight moved by one rounding. The third is the yardstick: training is chaotic, rounding errors double every few
steps, and two right engines part as far as it parts from the second. Losses are compared as means over windows of
steps; the first step's loss is compared as it is. Images are ten kinds in noise, in CIFAR's shape, so that there is
something to learn. Every step draws a dropout rate from 0 to 0.8 for each group, and its survivors at random.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distreal_edge import Engine, Network, zoo
from distreal_edge.bench import describe_machine

if TYPE_CHECKING:
    from numpy.typing import NDArray

NETWORKS = ("resnet20", "densenet40", "vgg_small", "mobilenet_v2")
LIMIT = 0.01
SEED = 1


@dataclass(frozen=True)
class Agreement:
    """How far losses are apart, relative to the reference's: of the first step, and of the worst window."""

    network: str
    first: float
    worst: float
    yardstick: float
    native: list[float]
    reference: list[float]


def moved_by_one_rounding(network: Network) -> Network:
    """Return the network with every trainable weight changed in its last bit."""
    moved = {name: np.nextafter(network.weights[name], np.float32(np.inf)) for name in network.plan.parameters}
    return Network(network.plan, {**network.weights, **moved})


def train(engines: list[Engine], network: Network, arguments: argparse.Namespace) -> list[NDArray[np.float64]]:
    """Return the losses of every engine, `[steps]` each."""
    rng = np.random.default_rng(SEED)
    kinds = rng.random((network.plan.classes, *network.plan.input_shape), dtype=np.float32)
    losses: list[list[float]] = [[] for _ in engines]
    for _ in range(arguments.steps):
        labels = rng.integers(0, network.plan.classes, arguments.batch)
        noise = rng.random((arguments.batch, *network.plan.input_shape), dtype=np.float32)
        images = np.float32(0.5) * (kinds[labels] + noise)
        subset = network.draw(rng.uniform(0.0, 0.8, len(network.groups)).tolist(), rng, "random")
        for engine, seen in zip(engines, losses, strict=True):
            seen.append(engine.step(images, labels, subset, lr=arguments.lr))
    return [np.array(seen) for seen in losses]


def compare(name: str, arguments: argparse.Namespace) -> Agreement:
    """Train one network with all engines."""
    network = zoo.NETWORKS[name](classes=10, seed=SEED)
    engines = [
        Engine(network, "native", seed=SEED),
        Engine(network, "reference", seed=SEED),
        Engine(moved_by_one_rounding(network), "reference", seed=SEED),
    ]
    ours, theirs, yardstick = train(engines, network, arguments)

    def apart(one: NDArray[np.float64]) -> float:
        means, expected = (np.reshape(losses, (-1, arguments.window)).mean(axis=1) for losses in (one, theirs))
        return float(np.max(np.abs(means / expected - 1.0)))

    first = abs(ours[0] / theirs[0] - 1.0)
    return Agreement(name, first, apart(ours), apart(yardstick), ours.tolist(), theirs.tolist())


def main() -> None:
    """Compare, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=100, help="steps whose mean loss is compared; divides --steps")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--json", type=Path, help="write the losses as JSON")
    arguments = parser.parse_args()
    print(f"{describe_machine().processor}; {arguments.steps} steps, batch {arguments.batch}, rate {arguments.lr}")
    print(f"{'network':<14}{'first step':>12}{'worst window':>14}{'PyTorch, moved':>16}{'loss from':>11}{'to':>7}")
    found: list[dict[str, Any]] = []
    for name in arguments.networks:
        result = compare(name, arguments)
        found.append(asdict(result))
        start, end = (np.mean(result.reference[part]) for part in (slice(10), slice(-10, None)))
        print(
            f"{name:<14}{result.first:>12.1e}{result.worst:>14.2%}{result.yardstick:>16.2%}{start:>11.3f}{end:>7.3f}"
            f"  {'within' if result.worst <= LIMIT else 'BEYOND'} {LIMIT:.0%}",
            flush=True,
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"limit": LIMIT, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
