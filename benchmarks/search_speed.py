"""Convergence speed of a table's rows against uniform and hand-made vectors, on seeds that no search has seen.

    .venv/bin/python benchmarks/search_speed.py resnet20-cifar10-ordered --out figures

A table is a file, or the name of one that is shipped. For each, fresh weights are trained at mixed rates into two
snapshots, on another split of the images than the search's; from these, early and late by turns, every vector trains
400 mini-batches, paired: batches, draws and augmentation of a seed are the same for all. Printed are, for each budget
of the full network's MACs, by how many nats the full network's loss is lower than if nothing had been trained, the
difference between the table's best row within the budget and each other vector of the row's MACs with its 95 %
confidence interval, and the hypervolumes of the fronts that these budgets make.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from distreal_edge.data import load_dataset
from distreal_edge.demo.network import demo_network
from distreal_edge.dropout import Table, filter_counts
from distreal_edge.network import Network, Preprocessing
from distreal_edge.search import shipped_table, shipped_tables
from distreal_edge.search.families import fit_family, macs_of
from distreal_edge.search.front import hypervolume
from distreal_edge.search.speed import HeldIn, Recipe, hold_out, recovered_losses, take_snapshots
from distreal_edge.zoo import NETWORKS

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
RIVALS = {"uniform": "uniform", "hand-made": "inner"}
SLACK = 0.01
SNAPSHOTS = (400, 2000)
CIFAR10 = Preprocessing((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), crop_padding=4, horizontal_flip=True)
HELD_OUT = 7001  # of weights, split, snapshots and, with the seeds that follow, of batches and draws

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """One training: which snapshots, of which seed, with which vector; no counts train nothing."""

    network: str
    data: str
    draw: str
    counts: Counts
    snapshot: int
    seed: int
    steps: int


def main() -> None:
    """Measure every table that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for the snapshots and for every figure as JSON")
    given = parser.parse_args()
    folder = given.out or Path("search_speed")
    folder.mkdir(parents=True, exist_ok=True)
    for name in given.tables:
        measure(name, folder, given.seeds, given.steps, given.processes)


def measure(name: str, folder: Path, seeds: int, steps: int, processes: int) -> None:
    """Measure and print one table."""
    table = load_table(name)
    network, title = network_of(table)
    kind = (title, table.data, table.draw)
    began = time.monotonic()
    for number, snapshot in enumerate(make_snapshots(*kind, processes)):
        snapshot.save(snapshot_path(folder, *kind, number))
    vectors = {("nothing", 0.0): (), ("full", 1.0): network.plan.sizes}
    for share in SHARES:
        row = max(table.under(share), key=lambda row: row.score)
        vectors["table", share] = filter_counts(row.vector, table.sizes)
        # Rivals of equal MACs: how finely a table divides budgets is not what is compared.
        equal = macs_of(network, vectors["table", share]) / macs_of(network, network.plan.sizes) * (1.0 + SLACK)
        for rival, family in RIVALS.items():
            vectors[rival, share] = fit_family(network, family, equal)
    trials = [
        Trial(*kind, counts, seed % len(SNAPSHOTS), HELD_OUT + seed, steps)
        for seed in range(seeds)
        for counts in dict.fromkeys(vectors.values())
    ]
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=enter, initargs=(str(folder),)) as pool:
        losses = dict(zip(trials, pool.map(run, trials), strict=True))
    falls = {
        key: np.array(
            [losses[trial_of(trials, (), seed)] - losses[trial_of(trials, counts, seed)] for seed in range(seeds)]
        )
        for key, counts in vectors.items()
        if counts
    }
    show(name, network, vectors, falls, time.monotonic() - began)
    figures = {f"{vector} {share:g}": [float(fall) for fall in own] for (vector, share), own in falls.items()}
    (folder / f"{Path(name).stem}.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


def load_table(name: str) -> Table:
    """Return a shipped table by its name, or one from a file."""
    return shipped_table(name) if name in shipped_tables() else Table.load(name)


def trial_of(trials: list[Trial], counts: Counts, seed: int) -> Trial:
    """Return the trial of these counts and this seed."""
    return next(trial for trial in trials if trial.counts == counts and trial.seed == HELD_OUT + seed)


def show(
    name: str,
    network: Network,
    vectors: dict[tuple[str, float], Counts],
    falls: dict[tuple[str, float], np.ndarray],
    seconds: float,
) -> None:
    """Print the figures of one table."""
    full = macs_of(network, network.plan.sizes)
    print(f"\n{name}: fall of the full network's loss, nats x 1000; full network {1e3 * falls['full', 1.0].mean():.1f}")
    print(f"{'budget':>7} {'':>10} {'share':>6} {'fall':>7}   table better by (95 % interval), seeds won")
    for share in SHARES:
        for vector in ("table", *RIVALS):
            own = falls[vector, share]
            spent = macs_of(network, vectors[vector, share]) / full
            line = f"{share:7.4f} {vector:>10} {spent:6.3f} {1e3 * own.mean():7.1f}"
            if vector != "table":
                better = 1e3 * (falls["table", share] - own)
                low, high = interval(better)
                line += f"   {better.mean():+6.1f} ({low:+.1f} to {high:+.1f}), {int((better > 0).sum())}/{len(better)}"
            print(line)
    for vector in ("table", *RIVALS):
        points = [(macs_of(network, vectors[vector, share]) / full, falls[vector, share].mean()) for share in SHARES]
        points.append((1.0, falls["full", 1.0].mean()))
        print(f"hypervolume, {vector}: {1e3 * hypervolume(points, cheapest=1 / 16):.2f}")
    print(f"({seconds:.0f} s)", flush=True)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of paired differences, by Student's t."""
    freedom = len(differences) - 1
    z = statistics.NormalDist().inv_cdf(0.975)
    # Cornish and Fisher's expansion of t's quantile: to three digits from 5 degrees of freedom on.
    expanded = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    t = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}.get(freedom, expanded)
    half = t * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


def network_of(table: Table) -> tuple[Network, str]:
    """Return the network that a table belongs to, with fresh weights, and its name."""
    for name, make in NETWORKS.items():
        if make().structure == table.network:
            return fresh_network(name), name
    network = fresh_network("demo")
    table.check_network(network.structure, network.plan.sizes)
    return network, "demo"


def fresh_network(name: str, seed: int = HELD_OUT) -> Network:
    """Return a network with fresh weights."""
    if name == "demo":
        return demo_network(seed)
    return NETWORKS[name](seed=seed, preprocessing=CIFAR10)


@cache
def images(data: str) -> HeldIn:
    """Return the images, in other parts than any search's."""
    return hold_out(load_dataset(data, split="train"), validation=4096, calibration=256, seed=HELD_OUT)


def make_snapshots(network: str, data: str, draw: str, threads: int) -> tuple[Network, ...]:
    """Train at mixed rates."""
    return take_snapshots(fresh_network(network), images(data), Recipe(draw), SNAPSHOTS, seed=HELD_OUT, threads=threads)


def snapshot_path(folder: Path, network: str, data: str, draw: str, number: int) -> Path:
    """Return where a snapshot is kept."""
    return folder / f"{network}-{data}-{draw}-{number}.safetensors"


FOLDER = Path()


def enter(folder: str) -> None:
    """Tell a process where the snapshots are."""
    global FOLDER  # noqa: PLW0603 - a process has one
    FOLDER = Path(folder)


def run(trial: Trial) -> float:
    """Return the full network's loss after one training."""
    snapshot = Network.load(snapshot_path(FOLDER, trial.network, trial.data, trial.draw, trial.snapshot))
    loss, _ = recovered_losses(
        snapshot,
        trial.counts,
        images(trial.data),
        Recipe(trial.draw),
        steps=trial.steps,
        seed=trial.seed,
        recovery=40,
    )
    return loss


if __name__ == "__main__":
    main()
