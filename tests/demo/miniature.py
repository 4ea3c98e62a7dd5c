"""A demo that takes seconds, as a scenario for tests and as a program: `miniature.py IMAGES REPORT ROUNDS`."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from distreal_edge import zoo
from distreal_edge.config import CeilingStep, TableChoice, Training
from distreal_edge.demo import Scenario, run_demo


def miniature(images: Path, rounds: int) -> Scenario:
    """Return rounds on two boards; one closes when its few mini-batches are done, long before its deadline."""
    return Scenario(
        devices=2,
        rounds=rounds,
        round_s=40.0,
        draw="ordered",
        seed=3,
        network=zoo.vgg_small(classes=2, in_channels=1, image_size=8),
        table=TableChoice(rows=4),
        training=Training(batch=16, lr=0.05, epochs=0.5, most_epochs=0.5, statistics_images=0),
        ceiling=(CeilingStep(from_share=0.0, ceiling=1.0),),
        calibration_images=64,
        evaluated_images=100,
        data="npz",
        root=str(images),
        alpha=100.0,
        core_speed=0.1,
        upload_s=10.0,
        target_accuracy=0.0,
    )


if __name__ == "__main__":
    report = run_demo(miniature(Path(sys.argv[1]), int(sys.argv[3])), Path(sys.argv[2]), Console())
    sys.exit({"finished": 0, "failed": 1, "interrupted": 130}[report.outcome])
