"""A made-up training: four devices, six rounds, rows that follow the cores."""

from __future__ import annotations

import bisect
import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.observe import RoundRecord, Steps, read_rounds, read_steps

if TYPE_CHECKING:
    from pathlib import Path

BEGAN_S = 1_700_000_000.0
ROUND_S = 12.0
ROUNDS = 6
NAMES = ("pi-1", "pi-2", "pi-3", "pi-4")
SHARES = (0.06, 0.13, 0.25, 0.38, 0.5, 0.68, 0.83, 1.0)
COLUMNS = ("time_s", "round", "mini_batch", "cores", "row", "share", "predicted_s", "seconds", "loss", "images")


def trace(device: int) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng((7, device))
    times = np.concatenate([[0.0], np.cumsum(rng.uniform(2, 5, 60))])
    cores = rng.choice([0.5, 1.0, 2.0] if device == 3 else [1.0, 2.0, 3.0, 4.0], len(times))
    return times.tolist(), cores.tolist()


def step_lines(device: int) -> list[dict[str, Any]]:
    times, cores = trace(device)
    lines = []
    for number in range(1, ROUNDS + 1):
        ceiling = 0.25 if number <= 2 else 1.0
        allowed = [row for row, share in enumerate(SHARES) if share <= ceiling]
        now, mini_batch = (number - 1) * ROUND_S + 0.5, 0
        while now < number * ROUND_S - 2:
            free = cores[bisect.bisect_right(times, now) - 1]
            row = min(max(allowed), round(free * 1.7))
            seconds = 0.05 + 0.4 * SHARES[row] / free
            values = (BEGAN_S + now, number, mini_batch, free, row, SHARES[row], seconds, seconds, 2 / number, 32)
            lines.append(dict(zip(COLUMNS, values, strict=True)))
            now, mini_batch = now + seconds, mini_batch + 1
    return lines


def write_training(folder: Path) -> None:
    own = {name: step_lines(device) for device, name in enumerate(NAMES)}
    for name, lines in own.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)
    with (folder / "rounds.jsonl").open("w", encoding="utf-8") as file:
        for number in range(1, ROUNDS + 1):
            # pi-4 misses round 5.
            answered = [name for name in NAMES if (name, number) != ("pi-4", 5)]
            trained = [line for name in answered for line in own[name] if line["round"] == number]
            record = {
                "round": number,
                "started_s": BEGAN_S + (number - 1) * ROUND_S,
                "closed_s": BEGAN_S + number * ROUND_S - 1,
                "ceiling": 0.25 if number <= 2 else 1.0,
                "selected": NAMES,
                "answered": answered,
                "images": sum(line["images"] for line in trained),
                "mini_batches": len(trained),
                "accuracy": 0.9 - 0.3 / number,
                "loss": 0.3 + 0.5 / number,
                "evaluated_images": 10_000,
                "model": "0" * 64,
            }
            file.write(json.dumps(record) + "\n")


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Return a folder with `rounds.jsonl` and a CSV of each device's mini-batches."""
    write_training(tmp_path)
    return tmp_path


@pytest.fixture
def rounds(training: Path) -> tuple[RoundRecord, ...]:
    return read_rounds(training / "rounds.jsonl")


@pytest.fixture
def steps(training: Path) -> dict[str, Steps]:
    return {name: read_steps(training / f"{name}.csv") for name in NAMES}
