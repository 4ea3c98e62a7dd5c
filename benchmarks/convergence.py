"""Does it learn faster? Every strategy side by side, on the same devices, images and traces, in virtual time.

    .venv/bin/python benchmarks/convergence.py --out convergence              # a night on two cores
    .venv/bin/python benchmarks/convergence.py --size small --out small       # minutes: shows that it runs, no more

Runs `distreal-edge simulate` on the scenarios of benchmarks/scenarios that are named, or on those whose images are
here and whose resources change, with three seeds; killed, the same command goes on. Prints for each a table in
Markdown, and writes it beside the figures and pictures: accuracy at the end, virtual time to 50, 60 and 70 %, means
over seeds with their 95 % confidence intervals, by how much `ours` is ahead of each strategy, paired by seed, and what
became of the devices' time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from search_speed import interval

from distreal_edge.config import load_config
from distreal_edge.demo.toml import to_toml
from distreal_edge.simulate import Scenario
from distreal_edge.simulate.results import MILESTONES, Results, Run
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SCENARIOS = Path(__file__).with_name("scenarios")
CHANGING = ("cifar10-resnet20-within", "cifar10-resnet20-between", "fashion-femnist-within", "cifar10-resnet20-thirds")
OURS = "ours"
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {},
    # Half an epoch a round: what counts is how strategies differ, and rounds are what they have in common.
    "night": {"rounds": {"number": 120}, "training": {"epochs": 0.5}},
    "small": {
        "rounds": {"number": 6, "devices_per_round": 4},
        "devices": {"number": 12},
        "data": {"images": 1200, "test_images": 300, "calibration_images": 128},
    },
}


def main() -> None:
    """Run the scenarios, and print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=CHANGING, help="names in benchmarks/scenarios, or files")
    parser.add_argument("--size", choices=SIZES, default="night")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategy", action="append", default=[], help="only this one; may be given again")
    parser.add_argument("--out", type=Path, default=Path("convergence"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.scenarios:
        text = report(run(sized(name, given.size), given.out, given.seeds, given.strategy))
        print(text, flush=True)
        (given.out / f"{Path(name).stem}.md").write_text(text, encoding="utf-8")


def sized(name: str, size: str) -> Scenario:
    """Return a scenario at this size."""
    path = Path(name) if name.endswith(".toml") else SCENARIOS / f"{name}.toml"
    scenario = load_config(path, Scenario)
    sections = {key: msgspec.structs.replace(getattr(scenario, key), **changed) for key, changed in SIZES[size].items()}
    every = 3 if size == "small" else scenario.evaluate_every
    return msgspec.structs.replace(scenario, name=f"{scenario.name}-{size}", evaluate_every=every, **sections)


def run(scenario: Scenario, out: Path, seeds: int, strategies: Sequence[str]) -> Results:
    """Simulate, as anybody would, and return the results."""
    file = out / f"{scenario.name}.toml"
    file.write_text(to_toml(scenario, "As it was run."), encoding="utf-8")
    folder = out / scenario.name
    chosen = [part for name in strategies for part in ("--strategy", name)]
    command = [sys.executable, "-m", "distreal_edge", "simulate", file, "--seeds", seeds, "--out", folder, *chosen]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return msgspec.json.decode((folder / "results.json").read_bytes(), type=Results)


def report(results: Results) -> str:
    """Return the table of a scenario."""
    runs = {each.name: [run for run in results.runs if run.strategy == each.name] for each in results.strategies}
    scenario = results.scenario
    lines = [
        f"### {scenario.name}",
        "",
        (
            f"{scenario.devices.number} devices, {scenario.rounds.devices_per_round} a round; "
            f"{count_of(scenario.rounds.number, 'round')}, {count_of(results.strategies[0].seeds, 'seed')}; "
            f"{results.machine.processor}."
        ),
        "",
        "| strategy | accuracy at the end (%) | ours better by (points) | "
        + " | ".join(f"min to {100 * milestone:.0f} %" for milestone in MILESTONES)
        + " | Tera-MACs | train / send / idle (%) |",
        "| --- " * (5 + len(MILESTONES)) + "|",
    ]
    for strategy in results.strategies:
        own = runs[strategy.name]
        cells = [
            strategy.title,
            mean_of([100 * run.final_accuracy for run in own if run.final_accuracy is not None], len(own)),
            "" if strategy.name == OURS else ahead(runs.get(OURS, []), own),
            *(time_to(own, milestone) for milestone in MILESTONES),
            f"{fmean(run.macs for run in own) / 1e12:.1f}",
            shares_of(own),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean_of(values: Sequence[float], wanted: int) -> str:
    """Return a mean with its confidence interval; a dash when some run has none."""
    if len(values) < wanted or not values:
        return "-"
    if len(values) < 2:
        return f"{values[0]:.1f}"
    low, high = interval(np.array(values))
    return f"{fmean(values):.1f} ({low:.1f} to {high:.1f})"


def ahead(ours: Sequence[Run], own: Sequence[Run]) -> str:
    """Return by how many points ours is better at the end, paired by seed."""
    finals = {run.seed: run.final_accuracy for run in own}
    pairs = [
        100 * (run.final_accuracy - other)
        for run in ours
        if run.final_accuracy is not None and (other := finals.get(run.seed)) is not None
    ]
    return mean_of(pairs, max(1, len(own)))


def time_to(own: Sequence[Run], milestone: float) -> str:
    """Return the mean virtual minutes to an accuracy, and how many of the runs got there when not all did."""
    times = [each.seconds / 60.0 for run in own for each in run.reached if each.accuracy == milestone]
    if not times:
        return "-"
    return f"{fmean(times):.0f}" + ("" if len(times) == len(own) else f" ({len(times)} of {len(own)})")


def shares_of(own: Sequence[Run]) -> str:
    """Return what became of the devices' time."""
    shares = [
        [run.shares.training, run.shares.download + run.shares.upload, run.shares.idle]  # a row a run
        for run in own
    ]
    return " / ".join(f"{100 * share:.0f}" for share in np.mean(shares, axis=0))


if __name__ == "__main__":
    main()
