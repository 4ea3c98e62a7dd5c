"""Print what a search loses when it is killed again and again, and what a second worker is worth to it.

    .venv/bin/python benchmarks/search_resume.py --json search_resume.json     # less than ten minutes, two quiet cores

First a search is killed at random moments with SIGKILL, by turns its main process only and all its processes, and
begun again until it ends; beside it another one of the same budget and seed runs undisturbed. Every vector that was
screened, and every confirmation, that was stored when a kill had happened must be there in the end with the same number
and the same values. What the kills cost is time: starting, and the trainings that were cut off.

Then one and two workers screen the same first vectors, by turns, each time from nothing; the time is from the moment
the first of these is taken to the moment the last one is stored.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna

from distreal_edge.bench import describe_machine, read_state
from distreal_edge.search.evidence import Evidence
from distreal_edge.search.storage import STORAGE_FAILURES, open_storage

GAIN = 1.8
NAME = "benchmark"
STUDIES = (NAME, f"{NAME}, confirmation")
Stored = dict[tuple[str, int], tuple[Any, ...]]


def command(arguments: argparse.Namespace, folder: Path, *, budget_s: float, workers: int) -> list[str]:
    """Return the command that begins or goes on with the search of this folder."""
    options: dict[str, object] = {
        "--data": arguments.data,
        "--root": arguments.root and arguments.root.resolve(),
        "--images": arguments.images,
        "--out": folder / "table.json",
        "--study": NAME,
        "--budget": f"{budget_s:.0f}s",
        "--workers": workers,
        "--snapshots": "20,60",
        "--steps": arguments.steps,
        "--confirm-steps": arguments.confirm_steps,
        "--confirm-seeds": 1,
        "--validation-images": arguments.validation_images,
        "--rows": 16,
        "--population": 16,
        "--seed": arguments.seed,
    }
    given = [str(part) for option, value in options.items() if value is not None for part in (option, value)]
    return [sys.executable, "-m", "distreal_edge", "search", arguments.network, *given]


def begin(what: list[str]) -> subprocess.Popen[bytes]:
    """Start a search in a process group of its own, its messages in a file that is thrown away."""
    return subprocess.Popen(
        what, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True
    )


def trials(folder: Path) -> list[tuple[str, optuna.trial.FrozenTrial]]:
    """Return all finished trials in the storage of this folder, with the names of their studies; none without one."""
    path = folder / "table.search.db"
    if not path.exists():
        return []
    # A search that begins, or that was killed when it began, has a storage without a study, or without tables.
    with contextlib.suppress(KeyError, *STORAGE_FAILURES):
        storage = open_storage(f"sqlite:///{path}")
        found = []
        for name in STUDIES:
            study = optuna.load_study(study_name=name, storage=storage)
            found += [(name, one) for one in study.get_trials() if one.state is optuna.trial.TrialState.COMPLETE]
        return found
    return []


def stored(folder: Path) -> Stored:
    """Return what every finished trial holds, by its study and number."""
    return {(name, one.number): (one.values, one.params, one.user_attrs) for name, one in trials(folder)}


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a search to end, or end this script."""
    if process.wait() != 0:
        raise SystemExit(f"the search failed with exit code {process.returncode}: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]


def result(folder: Path) -> dict[str, float]:
    """Return what a search has found."""
    evidence = msgspec.json.decode((folder / "table.evidence.json").read_bytes(), type=Evidence)
    return {
        "screened": len(evidence.screened),
        "confirmed": len(evidence.confirmed),
        "screening_hypervolume": evidence.screened[-1].hypervolume,
        "hypervolume": evidence.hypervolumes["found"],
    }


def disturbed(arguments: argparse.Namespace, folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Kill a search again and again, let it end, and return what it lost and what it found."""
    what = command(arguments, folder, budget_s=arguments.budget_s, workers=arguments.workers)
    seen: list[Stored] = []
    for number in range(arguments.kills):
        process = begin(what)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.5, 1.6 * arguments.budget_s / arguments.kills))
            if process.returncode != 0:
                finish(process)
            print(f"the search had ended after {number} kills", flush=True)
            break
        whole_group = number % 2 == 1
        os.kill(process.pid, signal.SIGKILL) if not whole_group else os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        seen.append(stored(folder))
        print(f"kill {number + 1:>2}, {'all processes' if whole_group else 'main process '}: {len(seen[-1])} stored")
    finish(begin(what))
    after = stored(folder)
    lost = sum(
        any(key not in after or after[key] != one[key] for one in seen if key in one) for key in set().union(*seen)
    )
    return {"kills": len(seen), "stored_at_kills": [len(one) for one in seen], "lost": lost, **result(folder)}


def undisturbed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let a search run to its end, and return what it found."""
    finish(begin(command(arguments, folder, budget_s=arguments.budget_s, workers=arguments.workers)))
    return result(folder)


def rate(arguments: argparse.Namespace, workers: int) -> float:
    """Return how many of the first vectors of a search so many workers screen in a minute."""
    with tempfile.TemporaryDirectory() as name:
        process = begin(command(arguments, Path(name), budget_s=3600.0, workers=workers))
        try:
            while True:
                time.sleep(0.5)
                if process.poll() is not None:
                    finish(process)
                done = [one for study, one in trials(Path(name)) if study == NAME and one.number < arguments.vectors]
                if len(done) == arguments.vectors:
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    began = min(one.datetime_start for one in done if one.datetime_start is not None)
    ended = max(one.datetime_complete for one in done if one.datetime_complete is not None)
    return 60.0 * len(done) / (ended - began).total_seconds()


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet8", help="a name of the zoo, or a network's file")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--root", type=Path, help="the dataset's folder or file")
    parser.add_argument("--images", type=int, default=6000, help="take only the first ones")
    parser.add_argument("--steps", type=int, default=50, help="mini-batches of a screening")
    parser.add_argument("--confirm-steps", type=int, default=50, help="and of a confirmation")
    parser.add_argument("--validation-images", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2, help="of the searches that are killed, or are not")
    parser.add_argument("--budget-s", type=float, default=100.0, help="seconds of these searches")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--vectors", type=int, default=16, help="so many are screened to compare workers; at most 20")
    parser.add_argument("--rounds", type=int, default=5, help="of one worker and of two, by turns")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    machine, state = describe_machine(), read_state()
    print(f"{machine.processor}, {machine.cores} cores, load {state.load:.2f}; {arguments.network} on {arguments.data}")
    figures: dict[str, Any] = {"processor": machine.processor, "cores": machine.cores, "load": state.load}
    with tempfile.TemporaryDirectory() as name:
        for kind in ("disturbed", "undisturbed"):
            folder = Path(name) / kind
            folder.mkdir()
            if kind == "disturbed":
                figures[kind] = disturbed(arguments, folder, np.random.default_rng(arguments.seed))
            else:
                figures[kind] = undisturbed(arguments, folder)
            found = figures[kind]
            print(
                f"{kind:<12} {found['screened']:>5} vectors screened, {found['confirmed']:>3} confirmed; hypervolume "
                f"{found['screening_hypervolume']:.4f} nats of the screening, {found['hypervolume']:.4f} of the front",
                flush=True,
            )
    killed = figures["disturbed"]
    stayed = max(killed["stored_at_kills"], default=0)
    verdict = "reached" if killed["lost"] == 0 else "MISSED"
    print(f"{killed['kills']} kills, {stayed} results stored by then, {killed['lost']} lost, target 0 {verdict}")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for workers, measured in rates.items():
            measured.append(rate(arguments, workers))
            print(f"{workers} worker(s): {measured[-1]:>7.1f} vectors a minute", flush=True)
    if arguments.rounds:
        gain = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
        one, two = (statistics.median(measured) for measured in rates.values())
        print(
            f"medians of {arguments.rounds} rounds: {one:.1f} vectors a minute by one worker, {two:.1f} by two, ratio "
            f"{gain:.2f}, target {GAIN} {'reached' if gain >= GAIN else 'MISSED'}"
        )
        figures |= {"per_minute_1": rates[1], "per_minute_2": rates[2], "gain": gain}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
