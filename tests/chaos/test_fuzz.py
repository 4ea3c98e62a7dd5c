"""Everything that bytes from elsewhere reach, under a coverage-guided fuzzer: `fuzz.py` beside this file."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python"),
]
MOST_GROWTH_MIB = 200


@pytest.mark.parametrize("target", ["frames", "manifests", "networks", "tables", "updates", "configurations"])
def test_no_bytes_do_worse_than_be_refused(
    target: str, tmp_path: Path, times: Callable[[int, int], int], figure: Callable[[str, str, str], None]
) -> None:
    seconds = times(1, 3600)
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), target, str(seconds)]
    # Linux hands the most memory that a process ever had on to a program that it starts; only a child of that program
    # begins anew, so that libFuzzer does not take our memory for its own.
    in_between = ["sh", "-c", '"$0" "$@"; exit $?', *command]
    done = subprocess.run(
        in_between, capture_output=True, text=True, errors="replace", cwd=tmp_path, timeout=seconds + 100, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", done.stderr)}
    began_mib = int(re.findall(r"INITED.*rss: (\d+)Mb", done.stderr)[0])
    inputs, most_mib = found["number_of_executed_units"], found["peak_rss_mb"]
    # Branches were seen, and inputs kept that took new ones: without, this would be no more than noise.
    assert found["new_units_added"] > 0
    assert most_mib < began_mib + MOST_GROWTH_MIB
    figure(
        f"fuzzed {target}, coverage-guided, {seconds} s",
        f"{inputs} inputs, 0 crashes, memory {began_mib} to {most_mib} MiB",
        "0 crashes, memory bounded",
    )
