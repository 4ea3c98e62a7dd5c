"""What one device does in one round, in any process: train as it would, on a board in virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.aggregator import judge_round
from distreal_edge.aggregator.closing import Averaged
from distreal_edge.aggregator.rounds import Open
from distreal_edge.device import Speed, Trace, encode_update, train_round
from distreal_edge.device.trainer import round_seed
from distreal_edge.network import Network
from distreal_edge.simulate.board import VirtualBoard, core_seconds_of
from distreal_edge.simulate.rivals import RIVALS
from distreal_edge.simulate.world import world_of

if TYPE_CHECKING:
    from distreal_edge.aggregator import Part, Scores
    from distreal_edge.device import MiniBatch, UpdateHeader
    from distreal_edge.dropout import Table
    from distreal_edge.simulate.rivals import Rival
    from distreal_edge.simulate.scenario import Scenario
    from distreal_edge.simulate.world import World
    from distreal_edge.transport import Manifest

__all__ = ["Scoring", "Trained", "Training", "score", "strategy_network", "strategy_table", "train"]


@dataclass(frozen=True, slots=True)
class Training:
    """One device's work in one round: which model, and from which second of virtual time on it has that."""

    scenario: Scenario
    rival: str
    manifest: Manifest
    model: bytes
    device: int
    opened_s: float
    start_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What became of it: the update's bytes and header, when it was there, how often each row was trained.

    It `stopped_early` when fewer mini-batches than planned were done in time, and `diverged` when they came to nothing.
    """

    update: bytes
    header: UpdateHeader
    end_s: float
    busy_s: float
    rows: dict[int, int]
    stopped_early: bool
    diverged: bool


@dataclass(frozen=True, slots=True)
class Scoring:
    """A model to score on the aggregator's images: all of it, or the part that has been trained."""

    scenario: Scenario
    model: bytes
    part: Part | None = None


@cache
def strategy_network(scenario: Scenario, rival: str) -> Network:
    """Return the network that a strategy trains, with fresh weights."""
    return RIVALS[rival].network(world_of(scenario))


@cache
def strategy_table(scenario: Scenario, rival: str) -> Table:
    """Return the rows that a strategy chooses from."""
    return RIVALS[rival].table(world_of(scenario), strategy_network(scenario, rival))


def train(task: Training) -> Trained:
    """Train one device for one round, with the trainer, pace and draws that devices have."""
    world, rival = world_of(task.scenario), RIVALS[task.rival]
    network = Network.from_bytes(task.model)
    table = strategy_table(task.scenario, task.rival)
    name = world.name(task.device)
    board = VirtualBoard(
        _trace(world, rival, task.device),
        start_s=task.start_s,
        macs_per_s=world.macs_per_s(task.device),
        overhead_macs=world.overhead_macs(task.device),
    )
    steps: list[MiniBatch] = []
    rng = np.random.default_rng((*round_seed(task.manifest, name), 1))
    update = train_round(
        manifest=task.manifest,
        network=network,
        table=table,
        dataset=world.images(task.device),
        device=name,
        uid=f"{name}-{task.manifest.number}",
        board=board,
        speed=_speed(world, table, task.device),
        stopped=lambda: False,
        report=steps.append,
        make_pace=rival.pace(rng),
    )
    settings = task.manifest.training
    diverged = bool(steps) and not update.header.images
    return Trained(
        encode_update(update, settings.encoding, settings.compression),
        update.header,
        board.now(),
        sum(step.seconds for step in steps),
        dict(Counter(step.row for step in steps)),
        stopped_early=len(steps) < world.planned(task.device) and not diverged,
        diverged=diverged,
    )


def score(task: Scoring) -> Scores | None:
    """Score a model as the aggregator does, with statistics measured on its own images."""
    held_out = world_of(task.scenario).held_out
    network = Network.from_bytes(task.model)
    averaged = Averaged(network, None, ("all",), 0, 0, 0, None)
    judged = judge_round(Open(1, (), 0.0, 0.0, 0.0, measure_only=False), averaged, held_out, task.part)
    return None if judged is None else judged.scores


def _trace(world: World, rival: Rival, device: int) -> Trace:
    if not rival.unlimited:
        return world.trace(device)
    cores = world.need_cores(device)
    # Beyond one core only whole ones do all that they can, see `Speed`.
    return Trace((0.0,), (cores if cores <= 1.0 else float(ceil(cores)),))


def _speed(world: World, table: Table, device: int) -> Speed:
    """Return what a device would have measured before its first round: the seconds of an image with two rows."""
    overhead, batch = world.overhead_macs(device), world.batch(device)
    measured = {
        number: core_seconds_of(
            table.rows[number].macs * batch, macs_per_s=world.macs_per_s(device), overhead_macs=overhead
        )
        / batch
        for number in {0, len(table.rows) - 1}
    }
    return Speed(table, measured)
