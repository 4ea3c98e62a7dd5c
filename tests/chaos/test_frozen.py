"""Devices are frozen (SIGSTOP) at random instants, and thaw again: rounds close in time all the same."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.transport import EmbeddedBroker, Topics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.chaos, pytest.mark.alone, pytest.mark.timeout(3600)]

MOST_S = 1.0
ROUND_S = 1.5


def test_every_round_closes_at_most_a_second_after_its_deadline(
    beside: Callable[[str], Any],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    farms, rng, count = beside("farm"), random.Random(4), times(4, 100)
    names = ("pi-1", "pi-2", "pi-3")
    with EmbeddedBroker() as broker, farms.Listener(broker, Topics("farm")) as listener:
        farm = farms.Farm(tmp_path, broker)
        try:
            for name in names:
                farm.device(name)
            farm.aggregator(number=count, seconds=ROUND_S, upload_seconds=0.5, least_devices=3)
            farms.wait_for(lambda: listener.manifests, "the first round")
            frozen: set[str] = set()
            while farm.running["aggregator"].poll() is None and not listener.manifests[-1][1].finished:
                name = rng.choice(names)
                number = signal.SIGCONT if name in frozen else signal.SIGSTOP
                farm.running[name].send_signal(number)
                frozen ^= {name}
                time.sleep(rng.uniform(0.1, 1.0))
            assert farm.running["aggregator"].wait(farms.WAIT_S) == 0
        finally:
            farm.end()
        deadlines = {manifest.number: manifest.deadline_s for _, manifest in listener.manifests}
        closed: dict[int, float] = {}
        for heard_s, health in listener.health:
            if health.phase in {"averaging", "evaluating"}:
                closed.setdefault(health.round, heard_s)
    assert set(closed) == set(range(1, count + 1))
    late_s = {number: heard_s - deadlines[number] for number, heard_s in closed.items()}
    short = sum(each > 0.0 for each in late_s.values())
    assert short > 0, "no round had to be closed by its deadline"
    assert max(late_s.values()) <= MOST_S, late_s
    figure(
        f"devices frozen (SIGSTOP) at random, {count} rounds, {short} of them closed by their deadline",
        f"closed at most {max(late_s.values()):.2f} s after it",
        "every round closes at most 1 s after its deadline",
    )
