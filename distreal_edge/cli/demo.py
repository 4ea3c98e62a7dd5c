"""`distreal-edge demo`: see the whole thing work, on one machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

__all__ = ["demo"]

_INTERRUPTED = 130


@click.command()
@click.option(
    "--report",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where logs, report.json and pictures go. An earlier demo's report there is replaced."
    "  [default: a new folder under report/]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1.0, max=86400.0),
    default=195.0,
    show_default=True,
    help="How long all rounds together train, at least two of them; fewer seconds reach less accuracy.",
)
@click.option("--devices", type=click.IntRange(1, 32), default=4, show_default=True, help="How many emulated boards.")
@click.option(
    "--draw",
    type=click.Choice(["ordered", "random", "sticky", "rolling"]),
    default="ordered",
    show_default=True,
    help="Which filters survive: the first ones, or as in the other draw policies.",
)
@click.option(
    "--seed", type=click.IntRange(0, 10**9), default=1, show_default=True, help="Of shards, traces and weights."
)
@click.option(
    "--trace",
    "traces",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Let boards follow this trace, as `record` writes it, instead of a made-up one. Several take turns.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print report.json on standard output, all else on standard error."
)
@click.pass_context
def demo(
    context: click.Context,
    *,
    folder: Path | None,
    seconds: float,
    devices: int,
    draw: str,
    seed: int,
    traces: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Train one network on emulated boards, and show how each adapts to the cores that it has free.

    Starts a broker, an aggregator and the boards as processes on this machine, for three to four minutes. Ctrl-C ends
    all of them; what happened so far is then in the report.

    Exit codes: 0 all rounds were run and the target of 85 % accuracy was reached; 1 it was missed, or a process failed;
    130 interrupted; 2 and above as everywhere, before anything was started.
    """
    from rich.console import Console  # noqa: PLC0415 - --help must be quick

    from distreal_edge.demo import default_scenario, run_demo  # noqa: PLC0415
    from distreal_edge.device import Trace  # noqa: PLC0415
    from distreal_edge.errors import DistrealError, printable  # noqa: PLC0415
    from distreal_edge.observe import encode_report  # noqa: PLC0415

    if folder is None:
        folder = Path("report") / time.strftime("demo-%Y%m%d-%H%M%S")
    console = Console(stderr=as_json)
    recorded = tuple((printable(path.name), Trace.load(path)) for path in traces)
    scenario = default_scenario(devices=devices, seconds=seconds, draw=draw, seed=seed, recorded=recorded)
    report = run_demo(scenario, folder, console)
    if as_json:
        sys.stdout.write(encode_report(report).decode())
    if report.outcome == "interrupted":
        click.echo(f"distreal-edge: {report.problem}; the report so far is in {folder}", err=True)
        context.exit(_INTERRUPTED)
    if report.outcome == "failed":
        raise DistrealError(report.problem)
    if not report.reached:
        known = "no accuracy is known" if report.accuracy is None else f"the accuracy is {report.accuracy:.2%}"
        raise DistrealError(
            f"{known}, the target of {report.target_accuracy:.0%} was missed; logs are in {folder / 'logs'}"
        )
