"""Read the images that a configuration names, and print what came of it: the part of `doctor` that may take long.

`python -m distreal_edge.cli.look FILE`: one JSON object, with `failure` when they cannot be used.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distreal_edge.aggregator.evaluation import HeldOut
from distreal_edge.cli.aggregate import load_held_out, prepare
from distreal_edge.cli.run import load_images
from distreal_edge.config import DeviceConfig, find_role, load_config
from distreal_edge.errors import DistrealError


def _look(path: Path) -> dict[str, object]:
    try:
        config = load_config(path, find_role(path))
        if isinstance(config, DeviceConfig):
            return {"images": len(load_images(config.data))}
        test, calibration = load_held_out(config.evaluation)
        HeldOut(test, calibration, 1).check(prepare(path, config).network)
    except DistrealError as error:
        return {"failure": str(error)}
    return {"images": 0 if test is None else len(test)}


if __name__ == "__main__":
    print(json.dumps(_look(Path(sys.argv[1]))))  # noqa: T201 - to the process that started this one
