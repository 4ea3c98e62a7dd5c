"""Our side of flower.py: the scenario under the strategy `full-unlimited`, a worker process for each core.

python flower_ours.py FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from distreal_edge.simulate import Federation, Scenario, world_of
from distreal_edge.simulate.training import Scoring

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.synchronize import Barrier


def get_ready(scenario: Scenario, everybody: Barrier) -> None:
    """Make the scenario's world in a worker, and wait for the others."""
    world_of(scenario)
    everybody.wait()


def simulate(plan: dict[str, Any], scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Run the scenario to its end; return its figures, and write the first round's model."""
    context = get_context("spawn")
    everybody = context.Barrier(plan["cores"] + 1)
    federation = Federation(scenario, "full-unlimited")
    selected: list[list[int]] = []
    trained = 0.0
    with context.Pool(plan["cores"], get_ready, (scenario, everybody)) as pool:

        def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Sequence[Any]:
            nonlocal trained
            if all(isinstance(task, Scoring) for task in tasks):
                trained = time.perf_counter()
            else:
                selected.append([task.device for task in tasks])
            return pool.map(function, tasks, chunksize=1)

        everybody.wait()
        began = time.perf_counter()
        images = 0
        for record in federation.rounds(run):
            images += record.images
            if record.round == 1:
                parameters = federation.network.plan.parameters
                np.savez(folder / "ours-first.npz", **{name: federation.network.weights[name] for name in parameters})
    if selected != plan["selected"]:
        message = f"not the devices that Flower was told: {selected} instead of {plan['selected']}"
        raise SystemExit(message)
    assert record.score is not None
    return {"accuracy": record.score.accuracy, "images": images, "train_s": trained - began}


if __name__ == "__main__":
    where = Path(sys.argv[1])
    given = json.loads((where / "plan.json").read_text(encoding="utf-8"))
    described = msgspec.json.decode((where / "scenario.json").read_bytes(), type=Scenario)
    (where / "ours.json").write_text(json.dumps(simulate(given, described, where)), encoding="utf-8")
