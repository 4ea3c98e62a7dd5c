"""`distreal-edge simulate`: whole federations in virtual time, strategies side by side."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distreal_edge.cli.ending import going_on_later
from distreal_edge.errors import ConfigError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distreal_edge.simulate.pool import Backend
    from distreal_edge.simulate.results import Results, Run
    from distreal_edge.simulate.run import Job
    from distreal_edge.simulate.scenario import Scenario

__all__ = ["simulate"]


@click.command()
@click.argument("path", metavar="SCENARIO", type=click.Path(path_type=Path))
@click.option("--strategy", "named", multiple=True, help="Only this strategy; may be given again.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1, 1000), help="Runs of each strategy.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The results' folder.  [default: the scenario's name]",
)
@click.option("--processes", type=click.IntRange(1, 4096), help="Of one thread each.  [default: all cores]")
@click.option(
    "--backend",
    default="loky",
    show_default=True,
    type=click.Choice(["loky", "dask", "ray"]),
    help="Where processes are: on this machine, or those of a dask or ray cluster.",
)
@click.option("--address", help="The cluster's scheduler, as tcp://10.0.0.1:8786.")
@click.option("--json", "as_json", is_flag=True, help="Print results.json on standard output.")
def simulate(
    path: Path,
    *,
    named: tuple[str, ...],
    seeds: int,
    out: Path | None,
    processes: int | None,
    backend: Backend,
    address: str | None,
    as_json: bool,
) -> None:
    """Train whole federations in virtual time, by several strategies on the same devices, and compare them.

    SCENARIO is a TOML file; docs/simulate.md has its keys. Devices really train, and take as long as their
    multiply-accumulates say. A simulation that was stopped or killed goes on when the same command is given again;
    when all is done that prints the results once more.
    """
    from distreal_edge.config import load_config  # noqa: PLC0415 - --help must be quick
    from distreal_edge.simulate.folder import open_folder  # noqa: PLC0415
    from distreal_edge.simulate.pool import open_pool  # noqa: PLC0415
    from distreal_edge.simulate.results import results_of  # noqa: PLC0415
    from distreal_edge.simulate.run import choose_strategies, jobs_of, run_jobs  # noqa: PLC0415
    from distreal_edge.simulate.scenario import Scenario  # noqa: PLC0415

    logging.basicConfig(format="distreal-edge: %(message)s", level=logging.WARNING)
    if (backend == "loky") != (address is None):
        raise ConfigError("--address goes with --backend dask or ray, and they with it")
    scenario = load_config(path, Scenario)
    strategies = choose_strategies(named, scenario)
    _check(path, scenario)
    folder_path = Path(scenario.name) if out is None else out
    with going_on_later(), open_folder(folder_path, scenario) as folder:
        jobs = jobs_of(scenario, strategies, seeds, folder)
        if not all(job.finished for job in jobs):
            _check_images(path, scenario)
            if processes is None and backend == "loky" and importlib.util.find_spec("joblib") is None:
                click.echo(
                    "distreal-edge: one process, as joblib is missing: pip install 'distreal-edge[simulate]'", err=True
                )
                processes = 1
            with open_pool(processes, backend, address) as pool, _bar(jobs) as report:
                jobs = run_jobs(jobs, folder, pool, report)
        results = results_of(scenario, jobs)
        _write(results, folder_path)
    if as_json:
        sys.stdout.write((folder_path / "results.json").read_text(encoding="utf-8"))
    else:
        _show(results, folder_path)


def _check(path: Path, scenario: Scenario) -> None:
    """Make what the scenario names, images aside; raise an error of ours that names file, line and key."""
    from distreal_edge.config import build_network, build_table, named_by  # noqa: PLC0415
    from distreal_edge.simulate.resources import make_trace  # noqa: PLC0415

    choice, availability = scenario.table, scenario.availability
    with named_by(path, "network", "zoo" if scenario.network.file is None else "file"):
        network = build_network(scenario.network)
    if choice is not None:
        with named_by(path, "table", *(key for key in ("file", "name") if getattr(choice, key) is not None)):
            build_table(choice, network, scenario.training.batch)
    if availability.kind == "recorded":
        with named_by(path, "availability", "traces"):
            make_trace(availability, 0, seed=scenario.seed, every_s=1.0, horizon_s=1.0)


def _check_images(path: Path, scenario: Scenario) -> None:
    from distreal_edge.config import named_by  # noqa: PLC0415
    from distreal_edge.simulate.world import world_of  # noqa: PLC0415

    with named_by(path, "data"):
        world_of(scenario)


@contextmanager
def _bar(jobs: Sequence[Job]) -> Iterator[Callable[[Job], None]]:
    """Show how far all runs together are, with the time left; without a terminal a line for each score."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    done = {(job.strategy, job.scenario.seed): job.done for job in jobs}
    total = len(jobs) * jobs[0].scenario.rounds.number
    before, began = sum(done.values()), time.monotonic()
    if not console.is_terminal:
        goes_on = f", {before} of {total} rounds are done" if before else ""
        click.echo(f"distreal-edge: {count_of(len(jobs), 'run')}{goes_on}", err=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=total, completed=before, left="")

        def report(job: Job) -> None:
            done[job.strategy, job.scenario.seed] = job.scenario.rounds.number if job.finished else job.done
            reached = sum(done.values())
            left_s = (time.monotonic() - began) / max(1, reached - before) * (total - reached)
            words = _words(job)
            if not console.is_terminal:
                click.echo(f"distreal-edge: {words}", err=True)
            bar.update(task, description=words, completed=reached, left=f"{_clock(left_s)} left")

        yield report


def _words(job: Job) -> str:
    assert job.checkpoint is not None
    scored = next((each for each in reversed(job.checkpoint.records) if each.score is not None), None)
    run = f"{job.strategy}, seed {job.scenario.seed}"
    if scored is None or scored.score is None:
        return f"{run}: nobody could take part"
    accuracy = "diverged" if scored.score.accuracy is None else f"accuracy {100 * scored.score.accuracy:.1f} %"
    return f"{run}: round {scored.round} of {job.scenario.rounds.number}, {accuracy}"


def _write(results: Results, folder: Path) -> None:
    import msgspec  # noqa: PLC0415

    from distreal_edge.durable import write_durably  # noqa: PLC0415

    write_durably(folder / "results.json", msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    if importlib.util.find_spec("matplotlib") is None:
        click.echo("distreal-edge: no pictures without matplotlib: pip install 'distreal-edge[plots]'", err=True)
        return
    from distreal_edge.simulate import pictures  # noqa: PLC0415

    pictures.draw_accuracy_over_time(results, folder / "accuracy-over-time.png")
    pictures.draw_accuracy_over_rounds(results, folder / "accuracy-over-rounds.png")
    if any(run.strategy == pictures.OURS and run.rounds for run in results.runs):
        pictures.draw_rows(results, folder / "rows.png")


def _show(results: Results, folder: Path) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table as Shown  # noqa: PLC0415

    from distreal_edge.simulate.results import MILESTONES  # noqa: PLC0415

    console = Console(highlight=False)
    shown = Shown(box=None, pad_edge=False)
    shown_milestones = (MILESTONES[0], MILESTONES[-1])  # all of them would not fit into eighty columns
    milestones = [f"{100 * each:.0f} %" for each in shown_milestones]
    for column in ("strategy", "accuracy (%)", *milestones, "TMACs", "trains", "idle", "late"):
        shown.add_column(column, justify="left" if column == "strategy" else "right", no_wrap=True)
    for strategy in results.strategies:
        runs = [run for run in results.runs if run.strategy == strategy.name]
        shown.add_row(
            strategy.name,
            _accuracy(strategy.final_accuracy, strategy.deviation) if all(run.rounds for run in runs) else "-",
            *(_reached(runs, milestone) for milestone in shown_milestones),
            f"{sum(run.macs for run in runs) / len(runs) / 1e12:.2g}",
            _mean_percent([run.shares.training for run in runs]),
            _mean_percent([run.shares.idle for run in runs]),
            str(sum(run.late for run in runs)),
        )
    console.print(shown)
    real_s = sum(run.real_s for run in results.runs)
    virtual_s = sum(run.virtual_s for run in results.runs)
    images = sum(run.images for run in results.runs)
    console.print(
        f"{count_of(len(results.runs), 'run')}, {_clock(virtual_s)} of virtual time: "
        f"{virtual_s / max(real_s, 1e-9):.3g} virtual seconds and {images / max(real_s, 1e-9):.0f} "
        "images in a second of a run.\n"
        f"Under 50 and 70 %: the virtual time until then. {folder}/results.json has all, with pictures beside it.",
        markup=False,
    )


def _accuracy(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "diverged"
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _reached(runs: Sequence[Run], milestone: float) -> str:
    """Return the mean virtual time until all runs had this accuracy."""
    times = [each.seconds for run in runs for each in run.reached if each.accuracy == milestone]
    return _clock(sum(times) / len(times)) if len(times) == len(runs) else "-"


def _mean_percent(shares: Sequence[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.0f} %"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    short = f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{short}" if whole >= 3600 else short
