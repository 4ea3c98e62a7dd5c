"""Print how much memory a device takes before it has a model, and how long it takes to start, beside the floors.

    .venv/bin/python benchmarks/startup.py --json startup.json
    .venv/bin/python benchmarks/startup.py --imports            # what the time goes into

Each figure is the median of fresh processes in which PyTorch cannot be imported. `imports` loads what the verb `run`
loads; `run` is the real command, up to its first line of log, with eight small images as its data and no broker to be
found. Its memory is VmRSS of /proc at that moment, its time is from the start of the process; the processor time
beside it shows how much of that was waiting for others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from distreal_edge.bench import describe_machine, read_state

MOST_BYTES = 60e6
MOST_SECONDS = 0.5
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"
IMPORTS = (
    "from distreal_edge.cli import run\nfrom distreal_edge.data import load_dataset\n"
    "from distreal_edge.device import DeviceDaemon\nfrom distreal_edge.engine import Engine\n"
)
SAY = "print('ready', flush=True); sys.stdin.read()\n"
RUN = "from distreal_edge.cli import main; main()\n"
CONFIG = """
federation = "farm"
device = "pi-1"
state = "{folder}/state"
[data]
name = "npz"
root = "{folder}/images.npz"
[broker]
host = "127.0.0.1"
port = 1
allow_plaintext = true
"""


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(program: str, arguments: list[str], stream: str, folder: Path) -> tuple[dict[str, float], str]:
    """Start a program in a process of its own; return its figures at its first line, and the line."""
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    streams[stream] = subprocess.PIPE
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", WITHOUT_TORCH + program, *arguments], cwd=folder, **streams) as child:
        said: IO[bytes] | None = getattr(child, stream)
        assert said is not None
        line = said.readline().decode().strip()
        seconds = time.perf_counter() - began
        figures = {
            "seconds": seconds,
            "processor_seconds": processor_seconds(child.pid),
            "resident_bytes": resident(child.pid) if line else 0,
        }
        child.kill()
    return figures, line


def prepare(folder: Path) -> Path:
    """Write images and a device's configuration into a folder."""
    images, labels = np.zeros((8, 3, 8, 8), dtype=np.uint8), np.arange(8) % 2
    np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    path = folder / "device.toml"
    path.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return path


def print_imports() -> None:
    """Print the imports that take longest, by themselves and with what they import."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", WITHOUT_TORCH + IMPORTS],
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
    numbers = [(int(own), int(total), name.strip()) for own, total, name in rows[1:]]
    for which, title in ((1, "with what they import"), (0, "by themselves")):
        print(f"milliseconds, imports {title}:")
        for row in sorted(numbers, key=lambda row: row[which], reverse=True)[:15]:
            print(f"{row[which] / 1000:>9.1f} {row[2]}")


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--imports", action="store_true", help="print which imports take longest, too")
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    machine, state = describe_machine(), read_state()
    print(f"{machine.processor}, {machine.cores} cores, load {state.load:.2f}; medians of {arguments.times} processes")
    print(f"at most {MOST_BYTES / 1e6:.0f} MB and {MOST_SECONDS} s")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = prepare(folder)
        for what, program, options, stream in (
            ("python", SAY, [], "stdout"),
            ("imports", IMPORTS + SAY, [], "stdout"),
            ("run", RUN, ["run", "--config", str(config)], "stderr"),
        ):
            measured = [start(program, options, stream, folder) for _ in range(arguments.times)]
            first_line = measured[0][1]
            if first_line.startswith("distreal-edge: ") or not first_line:
                raise SystemExit(f"{what} failed: {first_line}")
            found = {name: statistics.median(run[name] for run, _ in measured) for name in measured[0][0]}
            within = found["seconds"] <= MOST_SECONDS and found["resident_bytes"] <= MOST_BYTES
            verdict = "reached" if within else "MISSED"
            figures[what] = {**found, "first_line": first_line}
            print(
                f"{what:<9}{found['resident_bytes'] / 1e6:>6.1f} MB {found['seconds']:>7.3f} s "
                f"{found['processor_seconds']:>7.2f} s of processor  {verdict:<8} {first_line}",
                flush=True,
            )
    if arguments.imports:
        print_imports()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
