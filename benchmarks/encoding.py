"""What encodings of an update lose and take, on a change that was really trained.

    .venv/bin/python benchmarks/encoding.py --json encoding.json

ResNet-8 trains an epoch on 1,024 images of Fashion-MNIST (`dataset-fashion-mnist`), once whole and once with the first
third of every group's filters. Printed are the L2 norm of what rounding changed over that of the change, and bytes:
of the encodings as they are, and of int8 with one scale for a whole tensor, and with rounding at random.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge import Engine
from distreal_edge.data import load_dataset
from distreal_edge.device.encoding import Scales, dequantise, pack, quantise, scale_lengths
from distreal_edge.dropout import Subset
from distreal_edge.zoo import resnet8

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES, BATCH = 1024, 32


def trained_change(share: float) -> tuple[NDArray[np.float32], list[tuple[int, ...]]]:
    """Return what an epoch changes, as one vector, and the shapes of its tensors."""
    network = resnet8(in_channels=1, image_size=28)
    engine, images = Engine(network, seed=0), load_dataset("fashion-mnist", split="train")
    subset = Subset(tuple(np.arange(max(1, round(share * size))) for size in network.plan.sizes))
    for begin in range(0, IMAGES, BATCH):
        part = slice(begin, begin + BATCH)
        engine.step(
            images.images[part], images.labels[part], subset, lr=0.05, momentum=0.9, weight_decay=5e-4, threads=1
        )
    names = network.plan.parameters
    changes = [(engine.weights[name] - network.weights[name]).reshape(-1) for name in names]
    return np.concatenate(changes), [parameter.shape for parameter in names.values()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = []
    print("filters  encoding                  lost     bytes  with zstd")
    for share in (1.0, 1 / 3):
        vector, shapes = trained_change(share)
        tensors = np.array([int(np.prod(shape)) for shape in shapes])
        for encoding, what, lengths, chance in (
            ("float32", "float32", tensors, False),
            ("float16", "float16", tensors, False),
            ("int8", "int8, as it is sent", scale_lengths(shapes), False),
            ("int8", "int8, rounded at random", scale_lengths(shapes), True),
            ("int8", "int8, a scale a tensor", tensors, False),
        ):
            values, scales = quantise(vector, encoding, lengths)  # type: ignore[arg-type]
            if chance:
                of_elements = np.repeat(scales, lengths)
                steps = np.divide(vector, of_elements, out=np.zeros_like(vector), where=of_elements > 0)
                values = np.floor(steps + rng.random(len(vector))).astype(np.int8)
            decoded = dequantise(
                values, Scales(scales, lengths) if encoding == "int8" else None, 0, np.empty_like(vector)
            )
            lost = float(np.linalg.norm(decoded - vector) / np.linalg.norm(vector))
            size, packed = values.nbytes + scales.nbytes, len(pack(values)[0]) + scales.nbytes
            rows.append({"share": share, "encoding": what, "lost": lost, "bytes": size, "zstd_bytes": packed})
            print(f"{share:7.0%}  {what:24s}  {lost:7.3%}  {size:7d}  {packed:7d}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
