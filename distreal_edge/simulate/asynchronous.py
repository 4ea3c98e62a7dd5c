"""One federation without rounds in virtual time: FedBuff's server (`buffered.py`) over the same devices.

Only the asynchrony differs from `federation.py`: a strategy's rows, pace and average stay. A device that paces itself
is given a round's length from when it begins; one that trains full networks to the end takes what it needs. Changes
are multiplied by their staleness weights and averaged as the strategy averages; where that is by images, and all have
equally many, this is FedBuff's mean over the buffer. It lasts as long as the scenario's rounds would, and the schedules
of learning rate and ceiling go by that time. The server's own learning rate is 1.
"""

from __future__ import annotations

import heapq
import math
from itertools import count
from typing import TYPE_CHECKING

import msgspec

from distreal_edge.aggregator import Open, average_round
from distreal_edge.device import read_update
from distreal_edge.simulate.buffered import Buffered, staleness_weight
from distreal_edge.simulate.federation import (
    LOOK_AGAIN,
    Federation,
    lesson_of,
    manifest_of,
    part_of,
    row_shares,
    score_now,
    trained_of,
    work,
)
from distreal_edge.simulate.fleet import Fleet
from distreal_edge.simulate.records import Checkpoint, Returned, record_of
from distreal_edge.simulate.rivals import RIVALS
from distreal_edge.simulate.training import strategy_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.simulate.federation import Runner
    from distreal_edge.simulate.records import RoundRecord, Score
    from distreal_edge.simulate.scenario import Scenario
    from distreal_edge.simulate.training import Training
    from distreal_edge.transport import Manifest

__all__ = ["AsynchronousFederation", "federation_of"]


class AsynchronousFederation:
    """A scenario with an `[asynchronous]` section under one strategy; like `Federation`, a record for each aggregation.

    There is always somebody training, so that it cannot be stopped between two aggregations and go on: one that is cut
    off begins again. `why_ended` says in words what ended it.
    """

    def __init__(self, scenario: Scenario, rival: str) -> None:
        """Begin."""
        settings = scenario.asynchronous
        assert settings is not None
        self.scenario = scenario
        self.rival = RIVALS[rival]
        self.fleet = Fleet(scenario, self.rival)
        self.world = self.fleet.world
        self.network = strategy_network(scenario, rival)
        self.now_s = 0.0
        self.why_ended = ""
        self._model = self.network.to_bytes()
        self._ready_s = self._aggregated_s = 0.0
        self._losses: list[float | None] = []
        self._records: list[RoundRecord] = []
        self._lesson = lesson_of(self.world, self.rival)
        self._buffered = Buffered(buffer=settings.buffer, concurrency=settings.concurrency, seed=scenario.seed)
        # Each piece of work has a number of its own, which seeds its batches and draws.
        self._numbers = count(1)
        self._selected = 0
        self._untrained: list[Training] = []
        self._order = count()
        self._events: list[tuple[float, int, int, Returned | None]] = []
        self._waiting: list[Returned] = []

    def rounds(self, run: Runner) -> Iterator[RoundRecord]:
        """Run until the time is over; a record comes when the next one is there, and the last one with a score."""
        held: RoundRecord | None = None
        while self.now_s < self.scenario.length_s:
            self._begin_work()
            # Who cannot be asked now is looked for again later.
            look_s = self.now_s + LOOK_AGAIN * self.scenario.rounds.seconds if self._buffered.vacant else math.inf
            until_s = min(look_s, self.scenario.length_s)
            self._train(run, until_s)
            if not self._events or self._events[0][0] >= until_s:
                self.now_s = until_s
            elif self._take_in():
                if held is not None:
                    yield self._told(held)
                held = self._aggregate()
                if held.round % self.scenario.evaluate_every == 0:
                    held = msgspec.structs.replace(held, score=self._score(held, run))
        self.why_ended = f"its {self.scenario.length_s:.0f} s are over, with {self._buffered.version} aggregations"
        if held is not None:
            if held.score is None:
                held = msgspec.structs.replace(held, score=self._score(held, run))
            yield self._told(held)

    def checkpoint(self) -> Checkpoint:
        """Return what it has come to; once it is over."""
        return Checkpoint(
            records=tuple(self._records),
            unscored=None,
            now_s=self.now_s,
            row_shares=row_shares(self.scenario, self.rival.name),
            model=self._model,
            finished=True,
        )

    def _score(self, record: RoundRecord, run: Runner) -> Score:
        part = part_of(self.scenario, self.rival.name, [*self._records, record])
        return score_now(self.scenario, self.network, run, part)

    def _told(self, record: RoundRecord) -> RoundRecord:
        self._records.append(record)
        return record

    # -- devices -----------------------------------------------------------------------------------------------------

    def _begin_work(self) -> None:
        """Have devices begin with the newest model, as many as may."""
        numbers = {self.world.name(device): device for device in range(self.scenario.devices.number)}
        if not self._buffered.vacant:
            return
        able = [name for name, device in numbers.items() if self.fleet.takes_part(device, self.now_s)]
        for name in self._buffered.begin(able):
            opened_s = max(self.now_s, self._ready_s)
            manifest = self._manifest(opened_s, (name,))
            manifest = msgspec.structs.replace(manifest, number=next(self._numbers))
            self._selected += 1
            task = self.fleet.begin(numbers[name], manifest, self._model, opened_s)
            if task is not None:
                self._untrained.append(task)
            else:
                self._note(manifest.deadline_s, numbers[name], None)

    def _train(self, run: Runner, until_s: float) -> None:
        """Train what must be known by now: whatever may arrive before everything that is known to come.

        What can wait does, so that more is trained at the same time. How long it waits depends on virtual time alone.
        """
        if not self._untrained:
            return
        earliest_s = min(task.start_s for task in self._untrained) + self.world.upload_s(0)
        if earliest_s > min(until_s, self._events[0][0] if self._events else math.inf):
            return
        for task, result in zip(self._untrained, run(work, self._untrained), strict=True):
            trained = trained_of(result)
            arrival_s = self.fleet.send(task, trained)
            self._note(arrival_s, task.device, Returned(task, trained, arrival_s))
        self._untrained = []

    def _note(self, time_s: float, device: int, returned: Returned | None) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), device, returned))

    # -- the aggregator ----------------------------------------------------------------------------------------------

    def _take_in(self) -> bool:
        """Take in what comes next; return whether the buffer is full now."""
        self.now_s, _, device, returned = heapq.heappop(self._events)
        if returned is None:
            self._buffered.gave_up(self.world.name(device))
        else:
            self._buffered.arrived(self.world.name(device))
            self.fleet.answer(returned.trained, device, self.now_s)
            self._waiting.append(returned)
        return self._buffered.full

    def _aggregate(self) -> RoundRecord:
        """Make the next model of the updates that wait."""
        returned, self._waiting = self._waiting, []
        staleness = self._buffered.aggregate()
        readers = [read_update(each.trained.update, self.network.plan) for each in returned]
        factors = [staleness_weight(behind) for behind in staleness]
        averaged = average_round(self.network, readers, self._lesson.rule, factors)
        self.network = averaged.network
        self._model = self.network.to_bytes()
        self._losses.append(averaged.training_loss)
        record = record_of(
            self._buffered.version,
            self._manifest(self.now_s, ()),
            averaged,
            returned,
            opened_s=self._aggregated_s,
            closed_s=self.now_s,
            why=f"{len(returned)} updates have come",
            selected=self._selected,
            late=0,
            staleness=sum(staleness) / len(staleness),
        )
        self._selected = 0
        self._aggregated_s = self.now_s
        self._ready_s = self.now_s + self.scenario.aggregator_s
        return record

    def _manifest(self, opened_s: float, selected: tuple[str, ...]) -> Manifest:
        """Return the manifest of what begins now, as of the round that would be open at this time."""
        rounds = self.scenario.rounds
        number = min(rounds.number, 1 + int(opened_s / (rounds.seconds + self.scenario.aggregator_s)))
        deadline_s, train_until_s = opened_s + rounds.seconds, opened_s + rounds.seconds - rounds.upload_seconds
        if self.rival.whole_only:
            deadline_s = train_until_s = max(deadline_s, self.scenario.length_s)
        opened = Open(number, selected, opened_s, train_until_s, deadline_s, measure_only=False)
        return manifest_of(self.world, self.rival, self._lesson, opened, self._model, self._losses)


def federation_of(
    scenario: Scenario, rival: str, after: Checkpoint | None = None
) -> Federation | AsynchronousFederation:
    """Return the federation that the scenario asks for: in rounds, where it stood, or without them, from the start."""
    if scenario.asynchronous is None:
        return Federation(scenario, rival, after=after)
    return AsynchronousFederation(scenario, rival)
