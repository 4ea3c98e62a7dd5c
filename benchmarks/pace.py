"""Rounds on boards whose cores come and go, in virtual time: this pace, a fixed row, and one choice per round.

    .venv/bin/python benchmarks/pace.py --out pace.json

Traces of four kinds (smooth, bursty, diurnal, hostile), 40 of each; on each a board of four cores trains eight rounds
of a minute. A step costs what ResNet-20's does on the native engine: a narrow row more than its MACs say, every
further thread a little less than the one before, some mini-batches several times as much for no reason. What is free
is seen as a monitor sees it, half a second late. A mini-batch that would end after the training time is thrown away,
whoever chose it.

Printed for each policy and kind: rounds that had nothing to send although something could have been trained; the work
done, which is the seconds of one core that finished mini-batches were worth, as a share of what an oracle does that
knows the future and wastes nothing; how many of the round's mini-batches were trained, of those that the oracle could
have trained on some row; and how many rounds threw their last one away.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.device import Availability, Choice, Pace, Speed, Trace
from distreal_edge.device.pace import Pause
from distreal_edge.search import shipped_table

if TYPE_CHECKING:
    from collections.abc import Callable

CORES = 4
ROUND_S = 60.0
ROUNDS = 8
PLANNED = 120
MOST = 480
BATCH = 32
SEEN_LATE_S = 0.5
FULL_S = 0.9  # a full mini-batch on one core: ResNet-20 on a Raspberry Pi 4, about
OVERHEAD = 0.2  # of a full mini-batch, whatever is dropped
LOST_PER_THREAD = 0.06
NOISE = 0.05
SLOW_SHARE, SLOW = 0.01, 3.0
LOOK_S = 0.02

TABLE = shipped_table("resnet20-cifar10-ordered")
SHARES = np.array([row.macs / TABLE.rows[-1].macs for row in TABLE.rows])
STEP_S = FULL_S * (OVERHEAD + (1.0 - OVERHEAD) * SHARES)


@dataclass(slots=True)
class Outcome:
    """What came of rounds: numbers of rounds and of mini-batches; work in seconds of one core."""

    rounds: int = 0
    missed: int = 0
    cut: int = 0
    mini_batches: int = 0
    planned: int = 0
    work: float = 0.0
    possible: float = 0.0

    def add(self, other: Outcome) -> None:
        """Add the numbers of other rounds."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def main() -> None:
    """Run every policy on every trace, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=40, help="of each kind")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    given = parser.parse_args()
    found: dict[str, dict[str, Outcome]] = {}
    for kind, make in KINDS.items():
        for number in range(given.traces):
            trace = make(np.random.default_rng((number, len(kind))))
            for policy, choose in POLICIES.items():
                found.setdefault(policy, {}).setdefault(kind, Outcome()).add(rounds_on(trace, choose, number))
    print(f"{'':>24} {'rounds':>7} {'missed':>7} {'work':>7} {'images':>7} {'cut short':>10}")
    for policy, kinds in found.items():
        everything = Outcome()
        for outcome in kinds.values():
            everything.add(outcome)
        for kind, own in {**kinds, "all": everything}.items():
            print(
                f"{policy:>15} {kind:>8} {own.rounds:7} {own.missed / own.rounds:7.1%} {own.work / own.possible:7.1%} "
                f"{own.mini_batches / own.planned:7.1%} {own.cut / own.rounds:10.1%}"
            )
    if given.out:
        figures = {
            policy: {kind: {name: getattr(own, name) for name in Outcome.__slots__} for kind, own in kinds.items()}
            for policy, kinds in found.items()
        }
        given.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")


# -- traces ------------------------------------------------------------------------------------------------------------


def smooth(rng: np.random.Generator) -> Trace:
    """Wander about a mean that differs from board to board."""
    mean, now, levels = rng.uniform(0.5, 3.5), rng.uniform(0.0, 4.0), []
    for _ in range(int(ROUNDS * ROUND_S / 0.5)):
        now += 0.05 * (mean - now) + rng.normal(0.0, 0.15)
        levels.append(min(4.0, max(0.05, now)))
    return _trace(np.arange(len(levels)) * 0.5, levels)


def bursty(rng: np.random.Generator) -> Trace:
    """Jump: an owner's jobs start and end, each of some cores, for a second or a minute."""
    seconds, levels = [0.0], [float(CORES)]
    while seconds[-1] < ROUNDS * ROUND_S:
        seconds.append(seconds[-1] + rng.exponential(rng.choice([1.0, 8.0, 30.0])) + 0.05)
        levels.append(float(rng.choice([0.05, 0.5, 1.0, 2.0, 3.0, 4.0])))
    return _trace(seconds, levels)


def diurnal(rng: np.random.Generator) -> Trace:
    """Pass a day in eight minutes: busy hours and idle ones, with somebody at work now and then."""
    seconds = np.arange(0.0, ROUNDS * ROUND_S, 1.0)
    phase, busy = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.5, 1.0)
    day = 2.0 + 2.0 * np.sin(2.0 * math.pi * seconds / (ROUNDS * ROUND_S) + phase)
    jobs = (rng.random(len(seconds)) < 0.1 * busy) * rng.uniform(0.0, 2.0, len(seconds))
    return _trace(seconds, np.clip(day - jobs, 0.05, 4.0))


def hostile(rng: np.random.Generator) -> Trace:
    """All or nothing: cores vanish about when a mini-batch begins, for longer and longer, and before the round ends."""
    seconds, levels, now = [0.0], [float(rng.choice([0.0, 4.0]))], 0.0
    while now < ROUNDS * ROUND_S:
        now += float(rng.uniform(0.2, 1.5) if levels[-1] > 0.1 else rng.uniform(0.2, 6.0))
        left = ROUND_S - now % ROUND_S
        seconds.append(now)
        levels.append(0.05 if left < 2.0 or levels[-1] > 0.1 else float(rng.choice([1.0, 4.0])))
    return _trace(seconds, levels)


def _trace(seconds: list[float] | np.ndarray, cores: list[float] | np.ndarray) -> Trace:
    return Trace(tuple(float(second) for second in seconds), tuple(float(level) for level in cores))


KINDS: dict[str, Callable[[np.random.Generator], Trace]] = {
    "smooth": smooth,
    "bursty": bursty,
    "diurnal": diurnal,
    "hostile": hostile,
}


# -- the board ---------------------------------------------------------------------------------------------------------


def work_of_threads(threads: int) -> float:
    """Return how much dearer a mini-batch is, in seconds of cores, with so many threads."""
    return 1.0 + LOST_PER_THREAD * (threads - 1)


def speed_at(cores: float) -> float:
    """Return the most seconds of one thread's work that so many cores do in a second."""
    return max(min(cores, threads) / work_of_threads(threads) for threads in range(1, CORES + 1))


def seen(trace: Trace, now_s: float) -> float:
    """Return the cores that a monitor reports: the mean of the last half second."""
    looks = np.arange(now_s - SEEN_LATE_S, now_s, 0.05)
    return float(np.mean([trace.at(max(0.0, look)) for look in looks]))


def possible_work(trace: Trace, start_s: float) -> float:
    """Return the seconds of one thread's work that the round's cores can do."""
    looks = np.arange(start_s, start_s + ROUND_S, LOOK_S) + LOOK_S / 2
    return LOOK_S * sum(speed_at(trace.at(look)) for look in looks.tolist())


# -- policies ----------------------------------------------------------------------------------------------------------


def this_pace(speed: Speed, until_s: float) -> Pace:
    """Choose before every mini-batch."""
    return Pace(TABLE, speed, ceiling=1.0, planned=PLANNED, most=MOST, images=BATCH, train_until_s=until_s)


class Held:
    """One row for a round: a given one, or what this pace would begin with if cores stayed as they are."""

    def __init__(self, speed: Speed, until_s: float, row: int | None) -> None:
        """Begin a round."""
        self._speed, self._until_s, self._row = speed, until_s, row
        self._done = 0

    def choose(self, now_s: float, availability: Availability) -> Choice | Pause | None:
        """Return the row again, while it would end in time."""
        cores, left_s = availability.cores, self._until_s - now_s
        if left_s <= 0.0 or self._done >= MOST:
            return None
        if self._row is None:
            first = this_pace(self._speed, self._until_s).choose(now_s, availability)
            self._row = first.row if isinstance(first, Choice) else 0
        threads, predicted = self._speed.fastest(self._row, BATCH, cores)
        if predicted > left_s and self._done:
            return Pause(min(0.25, left_s))
        return Choice(self._row, threads, predicted)

    def finished(self, choice: Choice, seconds: float, core_seconds: float) -> None:
        """Learn as the pace does."""
        self._done += 1
        self._speed.observe(choice.row, BATCH, choice.threads, core_seconds, seconds)


def _row_of(share: float) -> int:
    return int(np.argmin(np.abs(SHARES - share)))


POLICIES: dict[str, Callable[[Speed, float], Pace | Held]] = {
    "this pace": this_pace,
    "once per round": lambda speed, until_s: Held(speed, until_s, None),
    "row of 1": lambda speed, until_s: Held(speed, until_s, len(SHARES) - 1),
    "row of 1/4": lambda speed, until_s: Held(speed, until_s, _row_of(0.25)),
    "row of 1/16": lambda speed, until_s: Held(speed, until_s, _row_of(1 / 16)),
}


def rounds_on(trace: Trace, policy: Callable[[Speed, float], Pace | Held], seed: int) -> Outcome:
    """Train eight rounds on a trace."""
    rng = np.random.default_rng((seed, 1))
    speed = Speed(TABLE, {0: float(STEP_S[0]) / BATCH, len(STEP_S) - 1: float(STEP_S[-1]) / BATCH})
    total = Outcome()
    for number in range(ROUNDS):
        total.add(one_round(trace, policy(speed, (number + 1) * ROUND_S), number * ROUND_S, rng))
    return total


def one_round(trace: Trace, pace: Pace | Held, start_s: float, rng: np.random.Generator) -> Outcome:
    """Train a round, and hold it against the oracle."""
    now_s, until_s = start_s, start_s + ROUND_S
    had_s = possible_work(trace, start_s)
    own = Outcome(1, planned=min(PLANNED, int(had_s / STEP_S[0])), possible=min(had_s, MOST * float(STEP_S[-1])))
    done = 0
    while (choice := pace.choose(now_s, Availability(seen(trace, now_s)))) is not None:
        if isinstance(choice, Pause):
            now_s += choice.seconds
            continue
        noise = rng.lognormal(0.0, NOISE) * (SLOW if rng.random() < SLOW_SHARE else 1.0)
        core_seconds = float(STEP_S[choice.row]) * work_of_threads(choice.threads) * noise
        ends_s = trace.finish(now_s, core_seconds, float(choice.threads))
        if ends_s > until_s:
            own.cut = 1
            break
        pace.finished(choice, ends_s - now_s, core_seconds)
        now_s = ends_s
        own.work += float(STEP_S[choice.row])
        done += 1
    own.mini_batches = min(done, own.planned)
    own.missed = int(done == 0 and own.planned > 0)
    return own


if __name__ == "__main__":
    main()
