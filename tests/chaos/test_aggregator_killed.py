"""The aggregator is killed with -9 at random instants of its rounds, and started again."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.aggregator import Ledger
from distreal_edge.transport import EmbeddedBroker, Topics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

MOST_S = 10.0
DEVICES = ("pi-1", "pi-2")
ROUND_S = 60.0  # no round closes for want of time


def test_no_update_is_lost_or_counted_twice_and_no_round_goes_back(
    beside: Callable[[str], Any],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    farms, topics, rng, kills = beside("farm"), Topics("farm"), random.Random(3), times(2, 100)
    took_s = []
    with EmbeddedBroker() as broker, farms.Listener(broker, topics) as listener:
        farm = farms.Farm(tmp_path, broker)
        try:
            farm.aggregator(number=10**6, seconds=ROUND_S, upload_seconds=1, least_devices=2)
            for name in DEVICES:
                farm.device(name)
            farms.wait_for(lambda: listener.answers("durable"), "the first update")
            for _ in range(kills):
                # Mostly in a round, which takes half a second here; sometimes when it has hardly begun to start.
                time.sleep(rng.uniform(0.0, 1.5))
                farm.kill("aggregator")
                known, began_s = len(farm.log("aggregator")), time.monotonic()
                farm.aggregator()
                if rng.random() < 0.1:
                    continue
                farm.wait_said("aggregator", "goes on", known, 3 * MOST_S)
                took_s.append(time.monotonic() - began_s)
            counted = len(listener.answers("durable"))
            farms.wait_for(lambda: len(listener.answers("durable")) > counted + 1, "updates after the last kill")
            # The first to go is who would ask for more: what is on its way is answered.
            for name in DEVICES:
                farm.running[name].terminate()
                farm.running[name].wait(farms.WAIT_S)
            farm.running["aggregator"].terminate()
            assert farm.running["aggregator"].wait(farms.WAIT_S) == 0
        finally:
            farm.end()
        durable, refused = listener.answers("durable"), listener.answers("refused")
        offered = dict(listener.offered)
        numbers = [manifest.number for _, manifest in listener.manifests]
    with Ledger(farm.state / "ledger.sqlite") as ledger:
        last = ledger.rounds_done() + 1
        counted_uids = [update.uid for number in range(1, last + 1) for update in ledger.updates(number)]
        answered = {number: {update.device for update in ledger.updates(number)} for number in range(1, last)}
    assert "Traceback" not in farm.log("aggregator")
    assert not refused, "an update was refused, whose round nobody closed"
    assert durable <= set(counted_uids), "lost"
    assert len(counted_uids) == len(set(counted_uids)), "counted twice"
    # What was offered last may have had no answer yet, but it is in the spool or in the ledger.
    spooled = {path.name.split(".")[0].rpartition("-")[2] for path in tmp_path.glob("pi-*/spool/*.update")}
    assert set(offered) <= set(counted_uids) | spooled, "lost"
    assert numbers == sorted(numbers), "a round went back"
    records = [json.loads(line) for line in (farm.state / "rounds.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == list(range(1, last))
    for record in records:
        assert set(record["answered"]) == answered[record["round"]] == set(DEVICES)
        assert record["images"] == 24 * len(DEVICES)
    assert max(took_s) < MOST_S
    figure(
        f"aggregator killed with -9 at random instants of rounds, {kills} times",
        f"{len(counted_uids)} updates of {len(records)} rounds: 0 lost, 0 counted twice, 0 rounds gone back; "
        f"went on within {max(took_s):.1f} s",
        "0 lost, 0 counted twice, 0 rounds gone back; goes on within 10 s",
    )
