"""One federation in virtual time: the state machines of aggregator and devices, driven by a clock that jumps."""

from __future__ import annotations

import heapq
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec

from distreal_edge.aggregator import (
    AggregatorRounds,
    Close,
    Finish,
    Lesson,
    Open,
    RoundSettings,
    average_round,
    trained_part,
)
from distreal_edge.aggregator.rounds import SETTLE_S
from distreal_edge.config.lesson import build_lesson, build_rounds
from distreal_edge.device import read_update
from distreal_edge.network import Network
from distreal_edge.simulate.fleet import Fleet, reference_of
from distreal_edge.simulate.records import Checkpoint, Returned, record_of, score_of
from distreal_edge.simulate.rivals import RIVALS
from distreal_edge.simulate.training import Scoring, Trained, score, strategy_network, strategy_table, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distreal_edge.aggregator import Part, Scores
    from distreal_edge.device import UpdateReader
    from distreal_edge.simulate.records import RoundRecord, Score
    from distreal_edge.simulate.rivals import Rival
    from distreal_edge.simulate.scenario import Scenario
    from distreal_edge.simulate.training import Training
    from distreal_edge.simulate.world import World
    from distreal_edge.transport import Manifest

    Task = Training | Scoring
    Result = Trained | Scores | None
    Runner = Callable[[Callable[[Task], Result], Sequence[Task]], Sequence[Result]]

__all__ = [
    "LOOK_AGAIN",
    "Federation",
    "Runner",
    "lesson_of",
    "manifest_of",
    "part_of",
    "round_settings",
    "row_shares",
    "score_now",
    "trained_of",
    "work",
]

LOOK_AGAIN: Final = 0.1
"""Of a round's length: so long nobody is asked when nobody can be selected."""

_Arrival = tuple[float, int, Returned]


class Federation:
    """A scenario under one strategy. `rounds` runs it to its end, a record for each round.

    Devices train in `run`'s processes; everything else, the whole of virtual time, is decided here, one event after
    the other. So the result does not depend on how many processes there are. `why_ended` says in words what ended it.
    """

    def __init__(
        self,
        scenario: Scenario,
        rival: str,
        *,
        after: Checkpoint | None = None,
    ) -> None:
        """Begin, or go on where it stood."""
        self.scenario = scenario
        self.rival = RIVALS[rival]
        self.fleet = Fleet(scenario, self.rival)
        self.world = self.fleet.world
        self.network = strategy_network(scenario, rival) if after is None else Network.from_bytes(after.model)
        self.now_s = 0.0 if after is None else after.now_s
        self.why_ended = ""
        self._records: list[RoundRecord] = [] if after is None else list(after.records)
        self._unscored = None if after is None else after.unscored
        self._finished = after is not None and after.finished
        self._lesson = lesson_of(self.world, self.rival)
        self._settings = round_settings(scenario)
        self._rounds = AggregatorRounds(self._settings, done=0 if after is None else after.done)
        self._rounds.broker_back(self.now_s - SETTLE_S)

    def rounds(self, run: Runner) -> Iterator[RoundRecord]:
        """Run the rounds that are left; `run(function, tasks)` returns what the function makes of each task, in order.

        A round that was scored comes with its score after the next one has been trained, because both are done at the
        same time.
        """
        while (opened := self._next_round()) is not None:
            unscored = self._unscored
            scoring = [] if unscored is None else [Scoring(self.scenario, self.network.to_bytes(), self._part())]
            record, scores = self._round(opened, scoring, run)
            told = [] if unscored is None else [msgspec.structs.replace(unscored, score=score_of(scores))]
            self._unscored = record if self._is_scored(record.round) else None
            if self._unscored is None:
                told.append(record)
            # All of them before the first is told: then there may be a checkpoint.
            self._records.extend(told)
            yield from told
        if self._unscored is not None:
            last = msgspec.structs.replace(
                self._unscored, score=score_now(self.scenario, self.network, run, self._part())
            )
            self._unscored = None
            self._records.append(last)
            yield last
        self._finished = True

    def checkpoint(self) -> Checkpoint:
        """Return all that is needed to go on from here; between rounds, as after each record of `rounds`."""
        return Checkpoint(
            records=tuple(self._records),
            unscored=self._unscored,
            now_s=self.now_s,
            row_shares=row_shares(self.scenario, self.rival.name),
            model=self.network.to_bytes(),
            finished=self._finished or (self._unscored is None and self._rounds.done >= self._settings.number),
        )

    def _part(self) -> Part | None:
        return part_of(self.scenario, self.rival.name, self._told())

    def _told(self) -> list[RoundRecord]:
        return self._records if self._unscored is None else [*self._records, self._unscored]

    def _is_scored(self, number: int) -> bool:
        return number % self.scenario.evaluate_every == 0 or number == self._settings.number

    # -- time --------------------------------------------------------------------------------------------------------

    def _next_round(self) -> Open | None:
        """Let time pass until the next round opens; None when there is none any more."""
        waited_from_s = self.now_s
        while self.now_s < self.scenario.last_s:
            for device in range(self.scenario.devices.number):
                if self.fleet.takes_part(device, self.now_s):
                    self._rounds.device_seen(self.world.name(device), len(self.world.shards[device]))
                else:
                    self._rounds.device_gone(self.world.name(device))
            for due in self._rounds.tick(self.now_s):
                if isinstance(due, Open):
                    return due
                if isinstance(due, Finish):
                    self.why_ended = f"all {self._rounds.done} rounds are over"
                    return None
            self.now_s += LOOK_AGAIN * self._settings.seconds
        self.why_ended = (
            f"{self._rounds.done} of {self._settings.number} rounds are over, and for the last "
            f"{self.now_s - waited_from_s:.0f} s the strategy {self.rival.name} could never select as many as "
            f"{self._settings.least_devices} at a time"
        )
        return None

    def _round(self, opened: Open, scoring: list[Scoring], run: Runner) -> tuple[RoundRecord, Scores | None]:
        """Announce, train, collect and average one round."""
        model = self.network.to_bytes()
        manifest = self._manifest(opened, model)
        selected = self._selected(opened)
        begun = [self.fleet.begin(device, manifest, model, opened.opened_s) for device in selected]
        tasks = [task for task in begun if task is not None]
        # The model to score is that of the round before: it takes about as long as a device, and nobody waits for it.
        results = run(work, [*scoring, *tasks])
        scores = _scores(results[0]) if scoring else None
        returned = [
            self._finish(task, trained_of(result)) for task, result in zip(tasks, results[len(scoring) :], strict=True)
        ]
        order = count()
        arriving = [(each.arrival_s, next(order), each) for each in returned if each.arrival_s is not None]
        readers, closed_s, why = self._collect(opened, arriving)
        averaged = average_round(self.network, [readers[name] for name in sorted(readers)], self._lesson.rule)
        self.network = averaged.network
        self._rounds.closed()
        self.now_s = closed_s + self.scenario.aggregator_s
        record = record_of(
            opened.number,
            manifest,
            averaged,
            returned,
            opened_s=opened.opened_s,
            closed_s=closed_s,
            why=why,
            selected=len(selected),
            late=len(returned) - len(readers),
        )
        return record, scores

    def _finish(self, task: Training, trained: Trained) -> Returned:
        """Note what a device trained, and when it arrives."""
        if self.rival.whole_only and trained.stopped_early:
            # It would go on beyond the deadline, and be too late.
            self.fleet.give_up(task, trained)
            return Returned(task, trained, None)
        return Returned(task, trained, self.fleet.send(task, trained))

    def _collect(self, opened: Open, arriving: list[_Arrival]) -> tuple[dict[str, UpdateReader], float, str]:
        """Take updates in as they arrive, until the round closes; return them, and when and why it did."""
        heapq.heapify(arriving)
        readers: dict[str, UpdateReader] = {}
        while True:
            time_s = opened.deadline_s
            if arriving and arriving[0][0] < opened.deadline_s:
                time_s, _, returned = heapq.heappop(arriving)
                name = returned.trained.header.device
                readers[name] = read_update(returned.trained.update, self.network.plan)
                self._rounds.update_stored(name)
                self.fleet.answer(returned.trained, returned.task.device, time_s)
            for due in self._rounds.tick(time_s):
                assert isinstance(due, Close)
                for *_, late in arriving:
                    self.fleet.answer(late.trained, late.task.device, time_s, late=True)
                return readers, time_s, due.why

    # -- the aggregator ----------------------------------------------------------------------------------------------

    def _manifest(self, opened: Open, model: bytes) -> Manifest:
        losses = [record.training_loss for record in self._told()]
        return manifest_of(self.world, self.rival, self._lesson, opened, model, losses)

    def _selected(self, opened: Open) -> list[int]:
        numbers = {self.world.name(device): device for device in range(self.scenario.devices.number)}
        return [numbers[name] for name in opened.selected]


def work(task: Task) -> Result:
    """Do a task, in whatever process."""
    return score(task) if isinstance(task, Scoring) else train(task)


def score_now(scenario: Scenario, network: Network, run: Runner, part: Part | None) -> Score:
    """Score a model, or the part of it that has been trained."""
    (result,) = run(work, [Scoring(scenario, network.to_bytes(), part)])
    return score_of(_scores(result))


def trained_of(result: Result) -> Trained:
    """Return the result of a training."""
    assert isinstance(result, Trained)
    return result


def _scores(result: Result) -> Scores | None:
    assert not isinstance(result, Trained)
    return result


def manifest_of(
    world: World, rival: Rival, lesson: Lesson, opened: Open, model: bytes, losses: Sequence[float | None]
) -> Manifest:
    """Return the manifest of a round; a strategy may raise its ceiling by the training losses so far."""
    table = strategy_table(world.scenario, rival.name)
    manifest = lesson.manifest(
        opened,
        round_settings(world.scenario),
        model=reference_of(model),
        table=reference_of(table.to_bytes()),
        draw=table.draw,
        measured_here=True,
    )
    if rival.ceiling_after is None:
        return manifest
    return msgspec.structs.replace(manifest, ceiling=max(manifest.ceiling, rival.ceiling_after(world, losses)))


def part_of(scenario: Scenario, rival: str, records: Sequence[RoundRecord]) -> Part | None:
    """Return what of the network a strategy has trained in these rounds; None when that may be all of it."""
    return trained_part(strategy_table(scenario, rival), max(record.ceiling for record in records))


def row_shares(scenario: Scenario, rival: str) -> tuple[float, ...]:
    """Return the shares of the full network's MACs that a strategy's rows have."""
    rows = strategy_table(scenario, rival).rows
    return tuple(row.macs / rows[-1].macs for row in rows)


def round_settings(scenario: Scenario) -> RoundSettings:
    """Return the scenario's rounds as the aggregator takes them."""
    return build_rounds(scenario.rounds, seed=scenario.seed)


def lesson_of(world: World, rival: Rival) -> Lesson:
    """Return how a strategy trains: as the scenario says, but for what is the strategy's own."""
    training = world.scenario.training
    return replace(
        build_lesson(training, rival.ceilings(world)),
        most_epochs=training.epochs * rival.most_epochs,
        statistics_images=0,
        average=rival.average,
        hostile_share=rival.hostile_share,
    )
