"""Train a tiny network for some steps, with the kernels of this processor and with plain code, and print the losses.

`python -m distreal_edge.doctor.trial`: one JSON object, with `failure` when it cannot train.
"""

from __future__ import annotations

import json
import os

import numpy as np

from distreal_edge.engine import Engine
from distreal_edge.errors import DistrealError
from distreal_edge.network import Network, PlanBuilder

_VARIABLE = "DISTREAL_EDGE_INSTRUCTION_SET"
_STEPS = 5


def _network() -> Network:
    builder = PlanBuilder((3, 12, 12))
    value = builder.input
    for number in range(2):
        value = builder.conv2d(f"conv{number}", value, 20, kernel=3, padding=1, bias=False)
        value = builder.relu(builder.batch_norm(f"norm{number}", value))
    return Network.initialise(builder.finish(builder.linear("fc", builder.flatten(value), 4)), seed=1)


def _train(engine: Engine, network: Network) -> list[float]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (8, 3, 12, 12)).astype(np.uint8)
    labels = np.arange(8, dtype=np.int64) % 4
    losses = []
    for step in range(_STEPS):
        subset = network.draw([0.0, 0.3] if step % 2 else [0.5, 0.0], rng)
        losses.append(engine.step(images, labels, subset, lr=0.01, threads=min(2, len(os.sched_getaffinity(0)))))
    return losses


def _trial() -> dict[str, object]:
    network = _network()
    try:
        chosen = Engine(network)
        losses = _train(chosen, network)
        os.environ[_VARIABLE] = "plain"
        plain_losses = _train(Engine(network), network)
    except DistrealError as error:
        return {"failure": str(error)}
    return {"instruction_set": chosen.instruction_set, "losses": losses, "plain_losses": plain_losses}


if __name__ == "__main__":
    print(json.dumps(_trial()))  # noqa: T201 - to the process that started this one
