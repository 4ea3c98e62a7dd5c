"""One federation in virtual time: the state machines of aggregator and devices, driven by a clock that jumps."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec

from distreal_edge.aggregator import AggregatorRounds, Close, Finish, Lesson, Open, RoundSettings, average_round
from distreal_edge.aggregator.rounds import SETTLE_S
from distreal_edge.device import DeviceRounds, read_update
from distreal_edge.device.rounds import OfferUpdate, Send, Train
from distreal_edge.network import Network
from distreal_edge.simulate.records import Checkpoint, RoundRecord, Score
from distreal_edge.simulate.rivals import RIVALS
from distreal_edge.simulate.training import (
    Scoring,
    Trained,
    Training,
    need_cores,
    score,
    strategy_network,
    strategy_table,
    train,
)
from distreal_edge.simulate.world import world_of
from distreal_edge.transport import Ack, BlobReference, chunk_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distreal_edge.aggregator import Scores
    from distreal_edge.device import Trace, UpdateReader
    from distreal_edge.simulate.scenario import Scenario
    from distreal_edge.transport import Manifest

    Task = Training | Scoring
    Result = Trained | Scores | None
    Runner = Callable[[Callable[[Task], Result], Sequence[Task]], Sequence[Result]]

__all__ = ["Federation", "Runner"]

_LOOK_AGAIN: Final = 0.1
"""Of a round's length: so long nobody is asked when nobody can be selected."""


@dataclass(slots=True)
class _Open:
    """The round that is open: what has come of it so far."""

    manifest: Manifest
    readers: dict[str, UpdateReader] = field(default_factory=dict)
    trained: dict[str, Trained] = field(default_factory=dict)
    late: int = 0
    downloads_s: float = 0.0
    uploads_s: float = 0.0
    upload_bytes: int = 0


class Federation:
    """A scenario under one strategy. `rounds` runs it to its end, a record for each round.

    Devices train in `run`'s processes; everything else, the whole of virtual time, is decided here, one event after
    the other. So the result does not depend on how many processes there are.
    """

    def __init__(self, scenario: Scenario, rival: str, *, after: Checkpoint | None = None) -> None:
        """Begin, or go on where it stood."""
        self.scenario = scenario
        self.rival = RIVALS[rival]
        self.world = world_of(scenario)
        self.network = strategy_network(scenario, rival) if after is None else Network.from_bytes(after.model)
        self.now_s = 0.0 if after is None else after.now_s
        self._table = strategy_table(scenario, rival)
        self._lesson = _lesson(self)
        self._settings = _settings(scenario)
        self._rounds = AggregatorRounds(self._settings, done=0 if after is None else after.done)
        self._rounds.broker_back(self.now_s - SETTLE_S)
        self._devices: dict[int, DeviceRounds] = {}
        self._traces: dict[int, Trace] = {}
        self._knows_table: set[int] = set() if after is None else set(after.knows_table)
        self._records: list[RoundRecord] = [] if after is None else list(after.records)
        self._unscored = None if after is None else after.unscored
        self._finished = after is not None and after.finished

    def rounds(self, run: Runner) -> Iterator[RoundRecord]:
        """Run the rounds that are left; `run(function, tasks)` returns what the function makes of each task, in order.

        A round that was scored comes with its score after the next one has been trained, because both are done at the
        same time.
        """
        while (opened := self._next_round()) is not None:
            unscored = self._unscored
            scoring = [] if unscored is None else [Scoring(self.scenario, self.network.to_bytes())]
            record, scores = self._round(opened, scoring, run)
            told = [] if unscored is None else [msgspec.structs.replace(unscored, score=_score(scores))]
            self._unscored = record if self._is_scored(record.round) else None
            if self._unscored is None:
                told.append(record)
            # All of them before the first is told: then there may be a checkpoint.
            self._records.extend(told)
            yield from told
        if self._unscored is not None:
            (result,) = run(work, [Scoring(self.scenario, self.network.to_bytes())])
            last = msgspec.structs.replace(self._unscored, score=_score(_scores(result)))
            self._unscored = None
            self._records.append(last)
            yield last
        self._finished = True

    def checkpoint(self) -> Checkpoint:
        """Return all that is needed to go on from here; between rounds, as after each record of `rounds`."""
        full = self._table.rows[-1].macs
        return Checkpoint(
            records=tuple(self._records),
            unscored=self._unscored,
            now_s=self.now_s,
            knows_table=tuple(sorted(self._knows_table)),
            row_shares=tuple(row.macs / full for row in self._table.rows),
            model=self.network.to_bytes(),
            finished=self._finished or (self._unscored is None and self._rounds.done >= self._settings.number),
        )

    def _is_scored(self, number: int) -> bool:
        return number % self.scenario.evaluate_every == 0 or number == self._settings.number

    # -- time --------------------------------------------------------------------------------------------------------

    def _next_round(self) -> Open | None:
        """Let time pass until the next round opens; None when there is none any more."""
        end_s = 2.0 * self._settings.number * (self._settings.seconds + self.scenario.aggregator_s)
        while self.now_s < end_s:
            for device in range(self.scenario.devices.number):
                name = self.world.name(device)
                share = self._trace(device).at(self.now_s) / need_cores(self.world, device)
                if self.rival.unlimited or self.rival.takes_part(share):
                    self._rounds.device_seen(name, len(self.world.shards[device]))
                else:
                    self._rounds.device_gone(name)
            for due in self._rounds.tick(self.now_s):
                if isinstance(due, Open):
                    return due
                if isinstance(due, Finish):
                    return None
            self.now_s += _LOOK_AGAIN * self._settings.seconds
        return None

    def _round(self, opened: Open, scoring: list[Scoring], run: Runner) -> tuple[RoundRecord, Scores | None]:
        """Announce, train, collect and average one round."""
        model = self.network.to_bytes()
        manifest = self._manifest(opened, model)
        now = _Open(manifest)
        tasks = [task for device in self._selected(opened) if (task := self._begin(device, now, model)) is not None]
        # The model to score is that of the round before: it takes about as long as a device, and nobody waits for it.
        results = run(work, [*scoring, *tasks])
        scores = _scores(results[0]) if scoring else None
        events: list[tuple[float, int, int]] = []
        order = count()
        for task, trained in zip(tasks, results[len(scoring) :], strict=True):
            assert isinstance(trained, Trained)
            arrival_s = self._finish(task, trained, now)
            if arrival_s is not None:
                heapq.heappush(events, (arrival_s, next(order), task.device))
        closed_s, why = self._collect(opened, events, now)
        return self._close(opened, now, closed_s, why), scores

    def _collect(self, opened: Open, events: list[tuple[float, int, int]], now: _Open) -> tuple[float, str]:
        """Take updates in as they arrive, until the round closes."""
        while True:
            arrives = events and events[0][0] < opened.deadline_s
            time_s, _, device = heapq.heappop(events) if arrives else (opened.deadline_s, 0, -1)
            if arrives:
                self._arrive(device, time_s, now)
            for due in self._rounds.tick(time_s):
                assert isinstance(due, Close)
                for *_, late in events:
                    self._answer(late, "refused", time_s)
                now.late += len(events)
                return time_s, due.why

    # -- devices -----------------------------------------------------------------------------------------------------

    def _begin(self, device: int, now: _Open, model: bytes) -> Training | None:
        """Have a device hear of the round and fetch what it needs; return its training, if it comes to that."""
        name, manifest = self.world.name(device), now.manifest
        opened_s = self._rounds.open.opened_s if self._rounds.open is not None else self.now_s
        machine = self._devices.get(device)
        if machine is None:
            machine = self._devices[device] = DeviceRounds(name)
            machine.connected(opened_s)
        machine.announced(manifest, opened_s, live=True)
        size = manifest.model.bytes + (0 if device in self._knows_table else manifest.table.bytes)
        self._knows_table.add(device)
        start_s = opened_s + self.world.download_s(size)
        now.downloads_s += start_s - opened_s
        if not any(isinstance(action, Train) for action in machine.blobs_complete(start_s)):
            return None
        return Training(self.scenario, self.rival.name, manifest, model, device, start_s)

    def _finish(self, task: Training, trained: Trained, now: _Open) -> float | None:
        """Note what a device trained; return when its update arrives, None when it sends none."""
        machine, name = self._devices[task.device], self.world.name(task.device)
        now.trained[name] = trained
        if self.rival.whole_only and trained.header.mini_batches < self.world.planned(task.device):
            # It would go on beyond the deadline, and be too late.
            machine.trained(None, trained.end_s)
            now.late += 1
            return None
        actions = machine.trained(trained.header.uid, trained.end_s)
        assert any(isinstance(action, OfferUpdate) for action in actions)
        uploading_s = self.world.upload_s(len(trained.update))
        now.uploads_s += uploading_s
        now.upload_bytes += len(trained.update)
        return trained.end_s + uploading_s

    def _arrive(self, device: int, time_s: float, now: _Open) -> None:
        """Take in an update, and say that it is safe."""
        name = self.world.name(device)
        now.readers[name] = read_update(now.trained[name].update, self.network.plan)
        self._rounds.update_stored(name)
        self._answer(device, "durable", time_s)

    def _answer(self, device: int, kind: str, time_s: float) -> None:
        machine = self._devices[device]
        uid = f"{self.world.name(device)}-{self._rounds.done + 1}"
        actions = machine.acknowledged(Ack(uid, "resend", None, (0,)), time_s)
        assert any(isinstance(action, Send) for action in actions)
        machine.sent(uid, time_s)
        answer = Ack(uid, "durable", None) if kind == "durable" else Ack(uid, "refused", "late")
        machine.acknowledged(answer, time_s)

    # -- the aggregator ----------------------------------------------------------------------------------------------

    def _manifest(self, opened: Open, model: bytes) -> Manifest:
        return self._lesson.manifest(
            opened,
            self._settings,
            model=_reference(model),
            table=_reference(self._table.to_bytes()),
            draw=self._table.draw,
            measured_here=True,
        )

    def _close(self, opened: Open, now: _Open, closed_s: float, why: str) -> RoundRecord:
        """Average what has come, and go on to the next round."""
        readers = [now.readers[name] for name in sorted(now.readers)]
        averaged = average_round(self.network, readers, self._lesson.rule)
        self.network = averaged.network
        self._rounds.closed()
        self.now_s = closed_s + self.scenario.aggregator_s
        rows: dict[int, int] = {}
        for trained in now.trained.values():
            for row, times in trained.rows.items():
                rows[row] = rows.get(row, 0) + times
        return RoundRecord(
            round=opened.number,
            opened_s=opened.opened_s,
            closed_s=closed_s,
            why=why,
            ceiling=now.manifest.ceiling,
            lr=now.manifest.training.lr,
            selected=len(opened.selected),
            answered=len(readers),
            late=now.late,
            mini_batches=averaged.mini_batches,
            images=averaged.images,
            macs=averaged.macs,
            training_loss=averaged.training_loss,
            rows=dict(sorted(rows.items())),
            downloads_s=now.downloads_s,
            busy_s=sum(trained.busy_s for trained in now.trained.values()),
            uploads_s=now.uploads_s,
            upload_bytes=now.upload_bytes,
        )

    def _selected(self, opened: Open) -> list[int]:
        numbers = {self.world.name(device): device for device in range(self.scenario.devices.number)}
        return [numbers[name] for name in opened.selected]

    def _trace(self, device: int) -> Trace:
        if device not in self._traces:
            self._traces[device] = self.world.trace(device)
        return self._traces[device]


def work(task: Task) -> Result:
    """Do a task, in whatever process."""
    return score(task) if isinstance(task, Scoring) else train(task)


def _scores(result: Result) -> Scores | None:
    assert not isinstance(result, Trained)
    return result


def _score(scores: Scores | None) -> Score:
    return Score(None, None) if scores is None else Score(scores.accuracy, scores.loss)


def _reference(data: bytes) -> BlobReference:
    return BlobReference(hashlib.sha256(data).hexdigest(), len(data), chunk_count(len(data)))


def _settings(scenario: Scenario) -> RoundSettings:
    rounds = scenario.rounds
    return RoundSettings(
        number=rounds.number,
        seconds=rounds.seconds,
        upload_seconds=rounds.upload_seconds,
        least_devices=rounds.least_devices,
        devices_per_round=rounds.devices_per_round,
        seed=scenario.seed,
        quorum=rounds.quorum,
        over_selection=rounds.over_selection,
    )


def _lesson(federation: Federation) -> Lesson:
    training, rival = federation.scenario.training, federation.rival
    return Lesson(
        batch=training.batch,
        lr=training.lr,
        final_lr=training.final_lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        epochs=training.epochs,
        most_epochs=training.epochs * rival.most_epochs,
        statistics_images=0,
        average=rival.average,
        ceilings=rival.ceilings(federation.world),
        hostile_share=rival.hostile_share,
        clip_norm=training.clip_norm,
        encoding=training.encoding,
        compression=training.compression,
    )
