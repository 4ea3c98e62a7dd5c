"""`distreal-edge bench`: how fast this machine computes convolutions and training steps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from distreal_edge.cli.numbers import FiniteRange, parse_threads
from distreal_edge.errors import ConfigError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from distreal_edge.bench import ConvolutionResult, Figures, Machine, Problem, State, StepResult

__all__ = ["bench"]

_PROBLEMS: Final = (
    "n32 c16>16 k3 s1 32x32 keep1",
    "n32 c16>16 k3 s1 32x32 keep.5",
    "n32 c64>64 k3 s1 16x16 keep1",
    "n32 c64>64 k3 s1 16x16 keep.5",
    "n32 c32>64 k3 s2 16x16 keep1",
    "n32 c96>24 k1 32x32 keep1",
    "n32 c96>96 k3 gD 32x32 keep1",
)
_STEPS: Final = tuple(
    f"{network} n32 keep{keep}" for network in ("resnet20", "vgg_small") for keep in ("1", ".5", ".25")
)


@click.command()
@click.argument("problems", nargs=-1, metavar="[PROBLEM]...")
@click.option("--threads", default="1", show_default=True, help="Numbers of threads, as 1,2.")
@click.option("--instruction-set", "sets", default="", help="Names, as avx2,plain; the one that engines use if none.")
@click.option(
    "--seconds",
    default=0.3,
    show_default=True,
    type=FiniteRange(0.001, 3600.0),
    help="How long to repeat each measurement; three times at least.",
)
@click.option(
    "--cool-down",
    default=0.2,
    show_default=True,
    type=FiniteRange(0.0, 3600.0),
    help="Seconds to rest before each problem, longer while the machine is hot.",
)
@click.option("--backend", type=click.Choice(["native", "reference"]), default="native", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
def bench(
    *, problems: tuple[str, ...], threads: str, sets: str, seconds: float, cool_down: float, backend: str, as_json: bool
) -> None:
    """Time convolutions and whole training steps over surviving filters on this machine.

    A PROBLEM is one quoted text: "n32 c16>16 k3 s1 32x32 keep.5" is a convolution of 32 images from 16 to 16 channels
    in windows of 3x3, of which half of the filters survive; "resnet20 n32 keep.5" is a training step of a network of
    the zoo. Without one, a list of usual problems is timed.
    """
    from distreal_edge.bench import Step, describe_machine, parse_problem, read_state  # noqa: PLC0415 - --help is quick

    usual = _STEPS if backend == "reference" else _PROBLEMS + _STEPS
    parsed = [parse_problem(problem) for problem in problems or usual]
    if backend == "reference" and not all(isinstance(problem, Step) for problem in parsed):
        raise ConfigError("the reference backend times whole steps only; leave out the convolutions or --backend")
    wanted = [(problem, name, count) for problem in parsed for name in _sets(sets) for count in parse_threads(threads)]
    machine, state = describe_machine(), read_state()
    warnings = _warnings(machine, state)
    for warning in warnings:
        click.echo(f"distreal-edge: {warning}", err=True)
    results = _run_all(wanted, seconds=seconds, cool_down_s=cool_down, backend=backend)
    if as_json:
        click.echo(json.dumps(_document(machine, state, warnings, results)))
    else:
        _show(machine, results)


def _sets(text: str) -> list[str]:
    from distreal_edge.bench import check_instruction_set  # noqa: PLC0415

    return [check_instruction_set(name.strip()) for name in text.split(",")]


def _warnings(machine: Machine, state: State) -> list[str]:
    warnings: list[str] = []
    if state.busy:
        warnings.append(
            f"others are computing here (load average {state.load:.1f} on {count_of(machine.cores, 'core')}); "
            "stop them, or the figures will be of them too"
        )
    if state.hot:
        warnings.append("this machine is hot or throttled; the figures will be of its cooling")
    return warnings


def _run_all(
    wanted: list[tuple[Problem, str, int]], *, seconds: float, cool_down_s: float, backend: str
) -> list[ConvolutionResult | StepResult]:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from distreal_edge.bench import Convolution, cool_down, run_convolution, run_step  # noqa: PLC0415

    results: list[ConvolutionResult | StepResult] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(wanted))
        for problem, name, threads in wanted:
            progress.update(task, description=str(problem))
            cool_down(cool_down_s)
            if isinstance(problem, Convolution):
                results.append(run_convolution(problem, threads=threads, instruction_set=name, seconds=seconds))
            else:
                results.append(
                    run_step(problem, threads=threads, instruction_set=name, seconds=seconds, backend=backend)
                )
            progress.advance(task)
    return results


def _document(
    machine: Machine, state: State, warnings: list[str], results: Iterable[ConvolutionResult | StepResult]
) -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415

    return {
        "machine": asdict(machine) | asdict(state),
        "warnings": warnings,
        "results": [asdict(result) for result in results],
    }


def _show(machine: Machine, results: list[ConvolutionResult | StepResult]) -> None:
    from rich.console import Console  # noqa: PLC0415

    from distreal_edge.bench import ConvolutionResult, StepResult  # noqa: PLC0415

    console = Console(highlight=False)
    governor = "" if machine.governor is None else f", governor {machine.governor}"
    console.print(f"{machine.processor}, {count_of(machine.cores, 'core')}{governor}", markup=False)
    peaks = {result.instruction_set: result.peak_flops for result in results}
    for name, peak in peaks.items():
        console.print(f"{name}: one core's measured peak is {peak / 1e9:.1f} GFLOP/s", markup=False)
    convolutions = [result for result in results if isinstance(result, ConvolutionResult)]
    steps = [result for result in results if isinstance(result, StepResult)]
    if convolutions:
        console.print(_convolution_table(convolutions))
    if steps:
        console.print(_step_table(steps))
    console.print(_LEGEND)


def _convolution_table(results: list[ConvolutionResult]) -> Table:
    table = _table("convolution", *_COLUMNS)
    for result in results:
        table.add_row(_label(result.problem, result.instruction_set, result.threads))
        for direction, figures in result.directions.items():
            table.add_row(f"  {direction.replace('_', '-')}", *_cells(figures))
    return table


def _step_table(results: list[StepResult]) -> Table:
    table = _table("step", *_COLUMNS, "img/s", "MB")
    for result in results:
        computed_with = result.instruction_set if result.backend == "native" else result.backend
        figures = [*_cells(result.figures), f"{result.images_per_s:.0f}", f"{result.arena_bytes / 1e6:.1f}"]
        table.add_row(_label(result.problem, computed_with, result.threads), *figures)
    return table


def _label(problem: str, computed_with: str, threads: int) -> str:
    return f"{problem}, {computed_with}" + (f", {threads} threads" if threads > 1 else "")


def _table(*columns: str) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    return table


_LEGEND: Final = (
    "Times are medians, with the minimum and the spread of the middle half. GMAC/s count padding; the share of the "
    "peak, which is that of one core times the threads, does not."
)
_COLUMNS: Final = ("ms", "min", "±%", "GMAC/s", "% peak")


def _cells(figures: Figures) -> list[str]:
    timing = figures.timing
    return [
        _milliseconds(timing.median_s),
        _milliseconds(timing.minimum_s),
        f"{timing.spread * 100:.0f}",
        f"{figures.gmacs_per_s:.1f}",
        f"{figures.peak_share * 100:.0f}",
    ]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.{3 if seconds < 0.1 else 1}f}"
