"""What it costs to change rows: mini-batches whose row changes every time against the same ones in long runs.

    .venv/bin/python benchmarks/switching.py

ResNet-20 on the native engine with one thread, rows of a shipped table; CPU time, medians of interleaved repeats. The
first mini-batch of a row, which plans its memory and its program, is printed beside its later ones. A pace that clung
to its row would save what this prints and nothing else.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from distreal_edge.dropout import Draws, filter_counts
from distreal_edge.engine import Engine
from distreal_edge.search import shipped_table
from distreal_edge.zoo import resnet20

TABLE = shipped_table("resnet20-cifar10-ordered")
ROWS = range(0, len(TABLE.rows), max(1, len(TABLE.rows) // 8))
BATCH = 32
RUN = 6
REPEATS = 15


def main() -> None:
    """Measure and print."""
    engine = Engine(resnet20(seed=0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, BATCH)
    draws = Draws("ordered", TABLE.sizes, (0,), 0)

    def step(row: int) -> float:
        subset = draws(filter_counts(TABLE.rows[row].vector, TABLE.sizes))
        began = time.process_time()
        engine.step(images, labels, subset, lr=1e-4)
        return time.process_time() - began

    first = [step(row) for row in ROWS]
    later = [statistics.median(step(row) for _ in range(RUN)) for row in ROWS]
    extra = [1e3 * (one - other) for one, other in zip(first, later, strict=True)]
    print(f"a row's first mini-batch costs {statistics.median(extra):.2f} ms more (at most {max(extra):.2f} ms)")
    changing, staying = [], []
    for _ in range(REPEATS):
        changing.append(sum(step(row) for _ in range(RUN) for row in ROWS))
        staying.append(sum(step(row) for row in ROWS for _ in range(RUN)))
    ratio = statistics.median(one / other for one, other in zip(changing, staying, strict=True))
    print(f"changing rows every mini-batch over keeping each for {RUN}: {ratio:.3f}")


if __name__ == "__main__":
    main()
