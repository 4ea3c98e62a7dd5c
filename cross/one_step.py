"""Train one step of resnet8 by the native engine, and write what came of it: the same program on boards and here.

python cross/one_step.py result.npz
"""
# ruff: noqa: INP001, T201

from __future__ import annotations

import platform
import sys
import time

import numpy as np
from safetensors.numpy import save_file

import distreal_edge as de
from distreal_edge import _native


def main() -> None:
    """Draw images and survivors from fixed seeds, step once, predict, save everything that has changed."""
    rng = np.random.default_rng(0)
    network = de.zoo.resnet8(classes=10)
    engine = de.Engine(network, backend="native", seed=0)
    images = rng.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, 8)
    subset = network.draw([0.4] * len(network.groups), rng, policy="random")
    began = time.perf_counter()
    loss = engine.step(images, labels, subset, lr=0.1, momentum=0.9, weight_decay=5e-4, threads=2)
    seconds = time.perf_counter() - began
    scores = engine.predict(images)
    save_file({"loss": np.array([loss]), "scores": scores, **engine.weights}, sys.argv[1])
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {_native.instruction_set()}: "
        f"loss {loss:.7f}, a step of {seconds:.2f} s"
    )


if __name__ == "__main__":
    main()
