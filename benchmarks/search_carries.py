"""Whether scores of dropout vectors carry over: rank correlations between snapshots, horizons and data sets.

    .venv/bin/python benchmarks/search_carries.py --draw ordered

ResNet-20. Two sets of vectors: some of equal MACs (a quarter of the full network's), among them every family, and some
spread from 1/16 to 3/4. Scores are those of the search: the mean training loss under dropout (screening), and the full
network's loss after some mini-batches and a few more at full width (confirmation). Printed is Spearman's rank
correlation, for screening and for confirmation: between seeds, between the early and the late snapshot, between k and
4k mini-batches, between screening and confirmation, and between CIFAR-10 and Fashion-MNIST; and every vector's figures,
with one that keeps a single filter in most groups and so cannot learn: a score that ranks it high is no score.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from search_speed import CIFAR10, HELD_OUT, SNAPSHOTS, images, snapshot_path

from distreal_edge.network import Network, Preprocessing
from distreal_edge.search.families import FAMILIES, fit_family, macs_of
from distreal_edge.search.speed import MixedRates, Recipe, recovered_losses, take_snapshots, training_loss
from distreal_edge.zoo import resnet20

EQUAL_SHARE = 0.25
TOLERANCE = 0.03
SHAPES = {"cifar10": (3, 32, CIFAR10), "fashion-mnist": (1, 28, Preprocessing((0.2860,), (0.3530,)))}

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """One score of one vector; no `recovery` is screening."""

    data: str
    draw: str
    counts: Counts
    snapshot: int
    steps: int
    seed: int
    recovery: int | None


def main() -> None:
    """Score all vectors in every way, and print the correlations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", default="ordered")
    parser.add_argument("--vectors", type=int, default=14, help="of each of the two sets")
    parser.add_argument("--steps", type=int, default=100, help="of a screening")
    parser.add_argument("--confirm-steps", type=int, default=400)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    sets = vectors(given.vectors)
    screening = Score("cifar10", given.draw, (), 1, given.steps, HELD_OUT, None)
    confirmation = replace(screening, steps=given.confirm_steps, recovery=40)
    unrecovered = replace(confirmation, recovery=0)
    pairs = {
        "screening, another seed": (screening, replace(screening, seed=HELD_OUT + 1)),
        "screening, late and early snapshot": (screening, replace(screening, snapshot=0)),
        f"screening, k = {given.steps} and 4k": (screening, replace(screening, steps=4 * given.steps)),
        "screening, CIFAR-10 and Fashion-MNIST": (screening, replace(screening, data="fashion-mnist")),
        "confirmation, another seed": (confirmation, replace(confirmation, seed=HELD_OUT + 1)),
        "confirmation, late and early snapshot": (confirmation, replace(confirmation, snapshot=0)),
        f"confirmation, k = {given.confirm_steps} and 4k": (
            confirmation,
            replace(confirmation, steps=4 * confirmation.steps),
        ),
        "confirmation, CIFAR-10 and Fashion-MNIST": (confirmation, replace(confirmation, data="fashion-mnist")),
        "screening and confirmation": (screening, confirmation),
        "confirmation with recovery and without": (confirmation, unrecovered),
    }
    dead = dead_vector()
    every = [counts for own in sets.values() for counts in own]
    kinds = list(dict.fromkeys(kind for pair in pairs.values() for kind in pair))
    scores = [replace(kind, counts=counts) for kind in kinds for counts in every]
    figures = [screening, unrecovered, confirmation]
    scores += [replace(kind, counts=dead) for kind in figures] + [replace(kind, counts=()) for kind in figures[1:]]
    with tempfile.TemporaryDirectory() as folder:
        for data in SHAPES:
            made = take_snapshots(
                fresh(data), images(data), Recipe(given.draw), SNAPSHOTS, seed=HELD_OUT, threads=given.processes
            )
            for number, snapshot in enumerate(made):
                snapshot.save(snapshot_path(Path(folder), "resnet20", data, given.draw, number))
        with ProcessPoolExecutor(given.processes, get_context("spawn"), initializer=enter, initargs=(folder,)) as pool:
            losses = dict(zip(scores, pool.map(score, scores), strict=True))
    print(f"Spearman's rank correlation, ResNet-20, {given.draw} draws; {' / '.join(sets)}")
    for name, (one, other) in pairs.items():
        found = [
            spearman(
                [losses[replace(one, counts=counts)] for counts in own],
                [losses[replace(other, counts=counts)] for counts in own],
            )
            for own in sets.values()
        ]
        print(f"{name:45} " + "  ".join(f"{value:5.2f}" for value in found), flush=True)
    network = fresh("cifar10")
    print("share of MACs; screening loss; fall of the full network's loss, nats x 1000, without recovery and with it")
    for counts in sorted([*every, dead], key=lambda counts: macs_of(network, counts)):
        share = macs_of(network, counts) / macs_of(network, network.plan.sizes)
        falls = [losses[kind] - losses[replace(kind, counts=counts)] for kind in figures[1:]]
        shown = " ".join(f"{1e3 * fall:7.1f}" for fall in falls)
        name = " (cannot learn)" if counts == dead else ""
        print(f"{share:6.3f} {losses[replace(screening, counts=counts)]:7.3f} {shown}  {counts}{name}")


def dead_vector() -> Counts:
    """Return a vector of an eighth of the MACs that cannot learn: whole at the front, one filter behind it."""
    sizes = fresh("cifar10").plan.sizes
    return (sizes[0], sizes[1] // 2, sizes[2] // 3, *(1 for _ in sizes[3:]))


def vectors(number: int) -> dict[str, list[Counts]]:
    """Return the two sets of vectors."""
    network = fresh("cifar10")
    full = macs_of(network, network.plan.sizes)
    rng, mixed = np.random.default_rng(HELD_OUT), MixedRates(network.plan)
    equal = [fit_family(network, family, EQUAL_SHARE) for family in FAMILIES]
    while len(equal) < number:
        counts = mixed(rng)
        if abs(macs_of(network, counts) / full - EQUAL_SHARE) < TOLERANCE:
            equal.append(counts)
    spread = [
        fit_family(network, list(FAMILIES)[index % len(FAMILIES)], 0.75 * (1 / 12) ** (index / (number - 1)))
        for index in range(number)
    ]
    return {f"{len(equal)} vectors at {EQUAL_SHARE:g} of the MACs": equal, f"{number} from 1/16 to 3/4": spread}


def fresh(data: str) -> Network:
    """Return ResNet-20 for a dataset, with fresh weights."""
    channels, size, preprocessing = SHAPES[data]
    return resnet20(in_channels=channels, image_size=size, seed=HELD_OUT, preprocessing=preprocessing)


def spearman(one: list[float], other: list[float]) -> float:
    """Return the correlation of ranks; losses have no ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


FOLDER = Path()


def enter(folder: str) -> None:
    """Tell a process where the snapshots are."""
    global FOLDER  # noqa: PLW0603 - a process has one
    FOLDER = Path(folder)


@cache
def snapshot(data: str, draw: str, number: int) -> Network:
    """Return a snapshot."""
    return Network.load(snapshot_path(FOLDER, "resnet20", data, draw, number))


def score(one: Score) -> float:
    """Return one loss."""
    start, held_in, recipe = snapshot(one.data, one.draw, one.snapshot), images(one.data), Recipe(one.draw)
    if one.recovery is None:
        return training_loss(start, one.counts, held_in, recipe, steps=one.steps, seed=one.seed)
    loss, _ = recovered_losses(
        start, one.counts, held_in, recipe, steps=one.steps, seed=one.seed, recovery=one.recovery
    )
    return loss


if __name__ == "__main__":
    main()
