"""Whole rounds in virtual time: a plain loop over `Pace`, on boards whose cores follow random traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.device import Pace, Speed, Trace
from distreal_edge.device.pace import Pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.dropout import Table

MACS = [50, 80, 130, 210, 340, 550, 1000]
BATCH = 4
PER_MAC = 1e-4
ROUND_S = 15.0


def random_trace(rng: np.random.Generator) -> Trace:
    """Smooth, bursty or hostile: every few tenths to several seconds another number of cores, down to none at all."""
    step_s = float(rng.choice([0.3, 1.0, 4.0]))
    seconds = np.concatenate([[0.0], np.cumsum(rng.exponential(step_s, 200) + 1e-3)])
    match rng.integers(3):
        case 0:
            cores = rng.uniform(0.0, 4.0, len(seconds))
        case 1:
            cores = 2.0 + 2.0 * np.sin(seconds / rng.uniform(1.0, 10.0))
        case _:
            cores = rng.choice([0.0, 0.1, 4.0], len(seconds))
    return Trace(tuple(seconds.tolist()), tuple(np.maximum(cores, 0.0).tolist()))


def run_round(table: Table, speed: Speed, board: Any, *, planned: int, most: int) -> tuple[list[int], float, float]:
    """Return the rows, the seconds by which the round ended too late, and the predicted end of its last mini-batch."""
    until_s = board.now() + ROUND_S
    pace = Pace(table, speed, ceiling=1.0, planned=planned, most=most, images=BATCH, train_until_s=until_s)
    rows: list[int] = []
    began_s = board.now()
    for _ in range(100_000):
        choice = pace.choose(board.now(), board.availability())
        if choice is None:
            break
        if isinstance(choice, Pause):
            board.wait_until(board.now() + choice.seconds, lambda: False)
            continue
        began_s = board.now()
        row = choice.row
        board.cost = lambda _, row=row: MACS[row] * BATCH * PER_MAC
        ran = board.run(lambda _: 0.0, choice.threads)
        board.wait_until(min(began_s + ran.seconds, until_s), lambda: False)
        pace.finished(choice, ran.seconds, ran.core_seconds)
        rows.append(row)
    else:
        pytest.fail("the round does not end")
    return rows, board.now() - until_s, began_s


def best_possible(trace: Trace, start: float) -> float:
    """Return the core-seconds that the trace has to give in the round, by a fine sum."""
    step = 5e-3
    return step * sum(trace.at(start + (number + 0.5) * step) for number in range(int(ROUND_S / step)))


@pytest.mark.parametrize("measured", [0.1, 1.0, 10.0])
def test_every_round_trains_something_and_ends_in_time(
    row_table: Callable[..., Table], virtual_board: type[Any], measured: float
) -> None:
    table = row_table(MACS, batch=BATCH)
    used = had = 0.0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        trace = random_trace(rng)
        board = virtual_board(trace, None)
        speed = Speed(table, {0: MACS[0] * PER_MAC * measured})
        for _ in range(3):
            start = board.now() - board.start_s
            rows, late_s, last_began_s = run_round(table, speed, board, planned=40, most=120)
            spent = sum(MACS[row] for row in rows) * BATCH * PER_MAC
            possible = best_possible(trace, start)
            # With hostile traces there may be no core in all of a round; then there is nothing to be had.
            assert rows or possible < MACS[0] * BATCH * PER_MAC
            assert late_s <= 0.0
            assert last_began_s < board.start_s + start + ROUND_S
            assert spent <= possible + MACS[-1] * BATCH * PER_MAC  # one may have been cut short
            used += spent
            had += min(possible, 120 * MACS[-1] * BATCH * PER_MAC)
    print(f"measured {measured:g} times the truth: {100 * used / had:.1f} % of what an oracle could have used")  # noqa: T201
    assert used > 0.8 * had


def test_a_weak_board_trains_as_many_images_as_a_strong_one(
    row_table: Callable[..., Table], virtual_board: type[Any], constant_cores: Callable[[float], Trace]
) -> None:
    table = row_table(MACS, batch=BATCH)
    widths = []
    for cores in (0.1, 0.3, 1.0):
        board = virtual_board(constant_cores(cores), None)
        rows, _, _ = run_round(table, Speed(table, {0: MACS[0] * PER_MAC}), board, planned=40, most=40)
        assert len(rows) == 40
        widths.append(sum(MACS[row] for row in rows) / 40)
    assert widths == sorted(widths)
    assert widths[0] < 0.2 * MACS[-1] < 0.9 * MACS[-1] < widths[-1]
