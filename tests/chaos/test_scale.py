"""`benchmarks/scale.py` in its short form: real programs, a real mosquitto, figures that can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distreal_edge.transport import CHUNK_BYTES
from distreal_edge.transport.embedded_broker import find_mosquitto

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS_BYTES = 4 * 61_706

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


def test_a_round_of_ten_and_of_fifty_devices_takes_what_it_must_and_not_much_more(tmp_path: Path) -> None:
    found = tmp_path / "scale.json"
    command = [sys.executable, ROOT / "benchmarks/scale.py", "--quick", "--json", found, "--plot", tmp_path / "s.png"]
    subprocess.run(command, check=True, timeout=590)
    cases: list[dict[str, Any]] = json.loads(found.read_text(encoding="utf-8"))["cases"]
    assert [case["devices"] for case in cases] == [10, 50]
    for case in cases:
        devices, figures = case["devices"], case["figures"]
        assert figures["answered"] == devices
        assert case["seen"] == devices - 1
        assert (case["refused"], case["dropped"], case["said_again"]) == ([], 0, 0)
        # Each device sends an update, which goes on to the aggregator, and is sent the model.
        assert devices * WEIGHTS_BYTES < figures["aggregator_in_bytes"] < 2 * devices * CHUNK_BYTES
        assert figures["broker_in_bytes"] > figures["aggregator_in_bytes"]
        assert figures["broker_out_bytes"] > 2 * devices * WEIGHTS_BYTES
        # want, offer, chunk, state three times; two answers.
        assert figures["broker_in_messages"] > 8 * devices
        parts = ("network_cpu_s", "messages_cpu_s", "storing_cpu_s", "averaging_cpu_s", "other_cpu_s")
        assert 0 < sum(figures[part] for part in parts) <= 1.1 * figures["aggregator_cpu_s"] + 0.1
        assert 10e6 < figures["aggregator_bytes"] <= figures["aggregator_peak_bytes"] < 500e6
        assert 1e6 < figures["broker_peak_bytes"] < 500e6
