"""The folder that the demo writes into: made, or taken over from an earlier demo, never from anybody else."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Final

from distreal_edge.errors import ConfigError, StateError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ACCURACY_PICTURE", "CORES_PICTURE", "PROGRAM", "REPORT", "claim_folder"]

PROGRAM: Final = "distreal-edge demo"
REPORT: Final = "report.json"
ACCURACY_PICTURE: Final = "accuracy.png"
CORES_PICTURE: Final = "cores-and-rows.png"
_FOLDERS: Final = ("config", "traces", "state", "logs")
_FILES: Final = (ACCURACY_PICTURE, CORES_PICTURE)


def claim_folder(folder: Path) -> bool:
    """Make `folder` ready for a new report; return whether an earlier report was removed from it.

    A folder that is not there or empty is taken. One with a report of an earlier demo is cleared of what the demo
    writes, and of nothing else. Any other folder raises ConfigError; one that cannot be written raises StateError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _is_ours(folder / REPORT)
        if not earlier and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty and holds no report of an earlier demo; name another folder with --report"
            )
        for name in _FOLDERS:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            (folder / name).mkdir()
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        # From now on the folder is known as ours, whatever happens.
        (folder / REPORT).write_text(json.dumps({"program": PROGRAM, "outcome": "running"}) + "\n", encoding="utf-8")
    except OSError as error:
        raise StateError(f"{folder}: cannot write the report there: {error.strerror or error}") from None
    return earlier


def _is_ours(report: Path) -> bool:
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("program") == PROGRAM
