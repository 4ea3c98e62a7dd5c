"""Whole trainings at a fraction of the MACs: the table's row against uniform rates, accuracy over MACs spent.

    .venv/bin/python benchmarks/search_training.py resnet20-cifar10-ordered resnet20-cifar10-random --out figures

From fresh weights every mini-batch trains the same vector: of the table, the best row within the budget, or uniform
rates within it. With random draws every filter is trained, and the accuracy is that of the full network, its batch-norm
statistics measured anew. Ordered draws never train what the row drops; the accuracy is that of the row's own
subnetwork. Test images are the dataset's own test split.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from search_speed import HELD_OUT, fresh_network, images, interval, load_table, network_of

from distreal_edge.data import Batches, Dataset, load_dataset
from distreal_edge.dropout import Draws, filter_counts
from distreal_edge.engine import Engine
from distreal_edge.network import Network
from distreal_edge.search.families import fit_family, macs_of

TEST_IMAGES = 4000

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Training:
    """One whole training."""

    network: str
    data: str
    draw: str
    vector: str
    counts: Counts
    seed: int
    steps: int
    points: int


def main() -> None:
    """Train with every table that is named, and print accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--points", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for the figures as JSON")
    given = parser.parse_args()
    for name in given.tables:
        table = load_table(name)
        network, title = network_of(table)
        row = max(table.under(given.share), key=lambda row: row.score)
        vectors = {
            "table": filter_counts(row.vector, table.sizes),
            "uniform": fit_family(network, "uniform", given.share),
        }
        trainings = [
            Training(title, table.data, table.draw, vector, counts, HELD_OUT + seed, given.steps, given.points)
            for seed in range(given.seeds)
            for vector, counts in vectors.items()
        ]
        with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
            accuracies = dict(zip(trainings, pool.map(train, trainings), strict=True))
        curves = {
            vector: np.array([accuracies[one] for one in trainings if one.vector == vector])  # seed, point
            for vector in vectors
        }
        show(name, network, vectors, curves, given.steps)
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            figures = {vector: own.tolist() for vector, own in curves.items()}
            (given.out / f"training-{Path(name).stem}.json").write_text(json.dumps(figures), encoding="utf-8")


def show(name: str, network: Network, vectors: dict[str, Counts], curves: dict[str, np.ndarray], steps: int) -> None:
    """Print one table's accuracies."""
    points = curves["table"].shape[1]
    print(f"\n{name}: accuracy (%) over MACs spent, mean of {len(curves['table'])} seeds")
    for vector, counts in vectors.items():
        macs = macs_of(network, counts)
        spent = " ".join(f"{32 * macs * steps * (point + 1) / points / 1e12:7.1f}" for point in range(points))
        means = " ".join(f"{100 * accuracy:7.2f}" for accuracy in curves[vector].mean(axis=0))
        share = macs / macs_of(network, network.plan.sizes)
        print(f"{vector:>8}, share {share:.3f}, tera-MACs {spent}")
        print(f"{'':>8}  accuracy          {means}")
    better = 100 * (curves["table"] - curves["uniform"])[:, -1]
    low, high = interval(better)
    each = " ".join(f"{one:+.2f}" for one in better)
    print(f"at the end the table's row is better by {better.mean():+.2f} points ({low:+.2f} to {high:+.2f}); {each}")


@cache
def test_images(data: str) -> Dataset:
    """Return the first images of the test split."""
    test = load_dataset(data, split="test")
    return test.take(range(min(TEST_IMAGES, len(test))))


def train(training: Training) -> list[float]:
    """Return the accuracy at evenly spaced points of one training."""
    network = fresh_network(training.network, training.seed)
    held_in = images(training.data)
    engine = Engine(network, seed=(training.seed, 3))
    batches = Batches(held_in.train, 32, np.random.default_rng((training.seed, 4)))
    draws = Draws(training.draw, network.plan.sizes, (training.seed, 5), 0)
    accuracies: list[float] = []
    for step in range(1, training.steps + 1):
        # The rate falls to zero on a cosine, as it does in whole trainings.
        lr = 0.05 * 0.5 * (1.0 + np.cos(np.pi * step / training.steps))
        engine.step(*next(batches), draws(training.counts), lr=lr)
        if step % (training.steps // training.points) == 0:
            accuracies.append(accuracy(network, engine, training))
    return accuracies


def accuracy(network: Network, engine: Engine, training: Training) -> float:
    """Return the accuracy of the full network, or with ordered draws of the subnetwork that was trained."""
    weights = {name: tensor.copy() for name, tensor in engine.weights.items()}
    if training.draw == "ordered":
        # A filter whose weights, scale and shift are zero adds nothing to what reads it.
        sizes = network.plan.sizes
        kept = Draws("ordered", sizes, (0,), 0)(training.counts).mask(sizes)
        for name, parameter in network.plan.parameters.items():
            weights[name] = np.where(parameter.touched(kept), weights[name], np.float32(0.0))
    scored = Engine(Network(network.plan, weights))
    calibration = images(training.data).calibration.images
    for name, statistic in scored.measure_statistics(np.array_split(calibration, 4)).items():
        scored.weights[name][...] = statistic
    test = test_images(training.data)
    return float(np.mean(np.argmax(scored.predict(test.images), axis=1) == test.labels))


if __name__ == "__main__":
    main()
