"""Measure what every row of a table takes on this board."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.bench.disturbance import (
    Usage,
    heat_before,
    heat_meanwhile,
    others_before,
    others_cores,
    others_meanwhile,
    read_usage,
)
from distreal_edge.bench.machine import State, cool_down, describe_machine, read_state
from distreal_edge.bench.timing import Timing, timed
from distreal_edge.dropout import (
    PROFILE_SCHEMA_VERSION,
    Draws,
    Profile,
    ProfiledMachine,
    ProfiledRow,
    ProfiledStep,
    filter_counts,
)
from distreal_edge.engine import Engine
from distreal_edge.errors import DistrealError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distreal_edge.dropout import Subset, Table
    from distreal_edge.network import Network

__all__ = ["SWEEPS", "Sensors", "Watch", "measure_profile"]

SWEEPS: Final = 5
"""Every row is visited so often: the medians are of at least as many steps, and do not see one bad visit."""
_LOOK_S: Final = 1.0
"""Processor time is counted in hundredths of a second: over less than this it says little."""
_SMALL_RATE: Final = 1e-6
_FLOAT_BYTES: Final = 4
_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Sensors:
    """Where a measurement looks for disturbances, and how it rests."""

    state: Callable[[], State] = read_state
    usage: Callable[[], Usage] = read_usage
    sleep: Callable[[float], object] = time.sleep


class Watch:
    """Look for disturbances before, during and after a measurement.

    Each is a `DistrealError` that says what was seen; when `forced`, it is noted in `disturbed` instead, once for
    each kind.
    """

    def __init__(self, sensors: Sensors, *, forced: bool) -> None:
        """Wait until the machine is cool, and look for a second at who computes."""
        self._sensors = sensors
        self._forced = forced
        self._disturbed: dict[str, str] = {}
        self._others: list[float] = []
        self.before = self._cool(0.0)
        self._began = sensors.usage()
        sensors.sleep(_LOOK_S)
        self._last = sensors.usage()
        self._note("others before", others_before(others_cores(self._began, self._last), self.before.load))

    @property
    def disturbed(self) -> tuple[str, ...]:
        """What was seen although it should not have been."""
        return tuple(text[:_TEXT] for text in self._disturbed.values())

    def rest(self, pause_s: float) -> None:
        """Pause, and wait while the machine is hot; when forced, do not wait for it."""
        self._cool(pause_s)

    def look_at_heat(self) -> None:
        """Look right after work whether it slowed the machine down."""
        self._note("heat", heat_meanwhile(self._sensors.state()))

    def look_at_others(self) -> None:
        """Look at what others used in the stretch since the last look, unless it is too short to tell."""
        now = self._sensors.usage()
        if now.time_s - self._last.time_s >= _LOOK_S:
            self._others.append(others_cores(self._last, now))
            self._last = now
        self._note("others", others_meanwhile(self._others, finished=False))

    def finish(self) -> tuple[State, float]:
        """Look a last time; return the machine's state, and how many cores others used on average all the while."""
        self._note("others", others_meanwhile(self._others, finished=True))
        state = self._sensors.state()
        self._note("heat", heat_meanwhile(state))
        return state, others_cores(self._began, self._last)

    def _cool(self, pause_s: float) -> State:
        sensors = self._sensors
        if self._forced:
            sensors.sleep(pause_s)
            state = sensors.state()
        else:
            state = cool_down(pause_s, read=sensors.state, sleep=sensors.sleep)
        self._note("heat", heat_before(state))
        return state

    def _note(self, kind: str, seen: str | None) -> None:
        if seen is None:
            return
        if not self._forced:
            raise DistrealError(f"not measured: {seen}; see to that and measure again, or force it")
        self._disturbed.setdefault(kind, seen)


def measure_profile(
    network: Network,
    table: Table,
    *,
    threads: Sequence[int],
    batch: int | None = None,
    seconds: float = 0.5,
    cool_down_s: float = 0.2,
    forced: bool = False,
    sensors: Sensors | None = None,
    progress: Callable[[float], object] = lambda _share: None,
) -> Profile:
    """Time training steps of `batch` images (None: the table's) for every row of a table at every number of threads.

    Each row and number of threads is timed for about `seconds`, and for five steps at least. Rows take turns, there and
    back again, so that a clock that drifts is everybody's. Before a row's turn the machine rests `cool_down_s`, and
    for as long as it is hot, up to a minute. Survivors are drawn by the table's policy, anew for each step; images
    are random; the network itself is left as it is. The table must be this network's.

    `progress` is told the share of the work that is done. Raises `DistrealError` when the machine is hot, throttled, or
    busy with other work, before or meanwhile; when `forced` the profile says so instead.
    """
    threads = sorted(set(threads))
    watch = Watch(Sensors() if sensors is None else sensors, forced=forced)
    images = table.batch if batch is None else batch
    steps = _Steps(network, table, images)
    visits = [(row, count) for row in range(len(table.rows)) for count in threads]
    total = (SWEEPS + 1) * len(visits)
    peaks: dict[tuple[int, int], int] = {}
    for row, count in visits:
        peaks[row, count] = steps.peak_bytes(row, count)
        progress(len(peaks) / total)
    taken: dict[tuple[int, int], list[float]] = {visit: [] for visit in visits}
    done = len(visits)
    for sweep in range(SWEEPS):
        rested = None
        for row, count in visits if sweep % 2 == 0 else reversed(visits):
            if row != rested:
                watch.rest(cool_down_s)
                rested = row
            taken[row, count] += steps.visit(row, count, sweep, seconds / SWEEPS)
            watch.look_at_heat()
            done += 1
            progress(done / total)
        watch.look_at_others()
    after, others = watch.finish()
    machine = describe_machine()
    return Profile(
        schema=PROFILE_SCHEMA_VERSION,
        network=table.network,
        table=table.digest,
        draw=table.draw,
        batch=images,
        instruction_set=steps.instruction_set,
        machine=ProfiledMachine(
            processor=machine.processor[:_TEXT],
            cores=machine.cores,
            governor=machine.governor,
            temperature_before_c=watch.before.temperature_c,
            temperature_after_c=after.temperature_c,
            load=watch.before.load,
            others_cores=others,
        ),
        disturbed=watch.disturbed,
        threads=tuple(threads),
        rows=tuple(
            ProfiledRow(
                row.vector,
                row.macs,
                tuple(_profiled(Timing.of(taken[number, count]), peaks[number, count]) for count in threads),
            )
            for number, row in enumerate(table.rows)
        ),
    )


def _profiled(timing: Timing, peak_bytes: int) -> ProfiledStep:
    return ProfiledStep(timing.median_s, timing.minimum_s, timing.spread, timing.repeats, peak_bytes)


class _Steps:
    # Training steps of a table's rows, on one engine that keeps what it planned for each, as a device's does.

    def __init__(self, network: Network, table: Table, batch: int) -> None:
        self._network = network
        self._policy = table.draw
        self._counts = [filter_counts(row.vector, table.sizes) for row in table.rows]
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (batch, *network.plan.input_shape), dtype=np.uint8)  # N, C, H, W
        self._labels = rng.integers(0, network.plan.classes, batch)
        self._engine = Engine(network)
        self.instruction_set = self._engine.instruction_set or ""

    def peak_bytes(self, row: int, threads: int) -> int:
        # An arena never shrinks, so that each row and number of threads needs an engine of its own.
        engine = Engine(self._network)
        self._step(engine, self._draws(0)(self._counts[row]), threads)
        assert engine.arena_bytes is not None
        momentum = sum(prod(parameter.shape) for parameter in self._network.plan.parameters.values())
        return engine.arena_bytes + sum(tensor.nbytes for tensor in engine.weights.values()) + _FLOAT_BYTES * momentum

    def visit(self, row: int, threads: int, sweep: int, seconds: float) -> list[float]:
        # The seconds of each step, after one that wakes the clock and fills the caches.
        draws, counts = self._draws(sweep), self._counts[row]
        self._step(self._engine, draws(counts), threads)
        taken: list[float] = []
        left_s = seconds
        while not taken or left_s > 0.0:
            (step_s,) = timed(partial(self._step, self._engine, draws(counts), threads), 1)
            taken.append(step_s)
            left_s -= step_s
        return taken

    def _draws(self, sweep: int) -> Draws:
        return Draws(self._policy, self._network.plan.sizes, (sweep,), sweep)

    def _step(self, engine: Engine, subset: Subset, threads: int) -> None:
        engine.step(self._images, self._labels, subset, lr=_SMALL_RATE, threads=threads)
