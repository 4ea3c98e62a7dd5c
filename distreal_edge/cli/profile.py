"""`distreal-edge profile`: what every row of a table takes on this very board."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import click

from distreal_edge.cli.files import is_there
from distreal_edge.cli.numbers import MOST_THREADS, FiniteRange, parse_threads
from distreal_edge.errors import ConfigError, NetworkError, TableError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table as Shown

    from distreal_edge.dropout import Profile, Table
    from distreal_edge.network import Network

__all__ = ["profile"]

_ZOO_ONLY = ("classes", "in_channels", "image_size")


@click.command()
@click.argument("network")
@click.option(
    "--table", "path", required=True, type=click.Path(path_type=Path), help="The table's JSON file, or a shipped table."
)
@click.option("--threads", default="", help="Numbers of threads, as 1,2.  [default: 1 to all cores]")
@click.option("--batch", type=click.IntRange(1, 65536), help="Images of a step.  [default: the table's]")
@click.option(
    "--seconds",
    default=0.5,
    show_default=True,
    type=FiniteRange(0.001, 3600.0),
    help="How long to time each row at each number of threads; five steps at least.",
)
@click.option(
    "--cool-down",
    default=0.2,
    show_default=True,
    type=FiniteRange(0.0, 3600.0),
    help="Seconds to rest before a row's turn, longer while the board is hot.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The profile's file.  [default: beside the table]")
@click.option("--force", is_flag=True, help="Measure although the board is hot or busy; the profile says so.")
@click.option("--classes", default=10, show_default=True, type=click.IntRange(2, 65536), help="Of a zoo network.")
@click.option("--in-channels", default=3, show_default=True, type=click.IntRange(1, 4096), help="Of a zoo network.")
@click.option("--image-size", default=32, show_default=True, type=click.IntRange(1, 4096), help="Of a zoo network.")
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON: the profile.")
def profile(
    *,
    network: str,
    path: Path,
    threads: str,
    batch: int | None,
    seconds: float,
    cool_down: float,
    out: Path | None,
    force: bool,
    classes: int,
    in_channels: int,
    image_size: int,
    as_json: bool,
) -> None:
    """Time every row of a table on this board, at every number of threads, and write a profile beside the table.

    NETWORK is the name of a network in the zoo, or a network's file. A board that is hot, throttled, or busy with other
    work is not measured.
    """
    from distreal_edge.bench import measure_profile  # noqa: PLC0415 - --help must be quick
    from distreal_edge.dropout import profile_path  # noqa: PLC0415

    counts = _threads(threads)
    table = _table(path)
    made = _network(network, classes, in_channels, image_size)
    _check(table, made, network)
    target = profile_path(path) if out is None else out
    _check_target(target, path)

    def measure(progress: Callable[[float], object]) -> Profile:
        return measure_profile(
            made,
            table,
            threads=counts,
            batch=batch,
            seconds=seconds,
            cool_down_s=cool_down,
            forced=force,
            progress=progress,
        )

    measured = _with_a_bar(measure)
    measured.save(target)
    for sentence in measured.disturbed:
        click.echo(f"distreal-edge: measured all the same: {sentence}", err=True)
    if as_json:
        click.echo(measured.to_bytes())
    else:
        _show(measured, target)


def _table(path: Path) -> Table:
    from distreal_edge.dropout import Table  # noqa: PLC0415
    from distreal_edge.search import shipped_table, shipped_tables  # noqa: PLC0415

    # The profile of a shipped table lands in the folder of the start: the package's own may not be ours to write to.
    named = not is_there(path) and str(path) in shipped_tables()
    return shipped_table(str(path)) if named else Table.load(path, profiled=False)


def _threads(text: str) -> list[int]:
    if not text:
        return list(range(1, min(len(os.sched_getaffinity(0)), MOST_THREADS) + 1))
    return parse_threads(text)


def _network(name: str, classes: int, in_channels: int, image_size: int) -> Network:
    from distreal_edge.network import Network  # noqa: PLC0415
    from distreal_edge.zoo import NETWORKS  # noqa: PLC0415

    if name in NETWORKS:
        return NETWORKS[name](classes=classes, in_channels=in_channels, image_size=image_size)
    if not is_there(Path(name)):
        raise NetworkError(f"{name}: neither a network's file nor one of the zoo: {', '.join(NETWORKS)}")
    context = click.get_current_context()
    for option in _ZOO_ONLY:
        if context.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT:
            raise ConfigError(f"--{option.replace('_', '-')}: leave it out, the network's file says that itself")
    return Network.load(name)


def _check(table: Table, network: Network, name: str) -> None:
    from distreal_edge.zoo import NETWORKS  # noqa: PLC0415

    try:
        table.check_network(network.structure, network.plan.sizes)
    except TableError as error:
        hint = "; or say --classes, --in-channels and --image-size of the table's network" if name in NETWORKS else ""
        raise TableError(f"{error}{hint}") from None


def _check_target(target: Path, table: Path) -> None:
    # Before minutes of measuring, not after.
    if target.resolve() == table.resolve():
        raise ConfigError(f"--out {target}: this is the table itself; give the profile a file of its own")
    if not _can_be_written(target):
        raise TableError(f"{target}: the profile cannot be written there; give --out a file in a folder of yours")


def _can_be_written(target: Path) -> bool:
    try:
        if target.is_dir():
            return False
        target.with_name(f"{target.name}.unfinished").exists()  # or its name is too long
        with TemporaryFile(dir=target.parent):
            return True
    except OSError:
        return False


def _with_a_bar(measure: Callable[[Callable[[float], object]], Profile]) -> Profile:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=1.0)
        return measure(lambda share: bar.update(task, completed=share))


def _show(measured: Profile, target: Path) -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False, markup=False)
    machine = measured.machine
    governor = "" if machine.governor is None else f", governor {machine.governor}"
    console.print(f"{machine.processor}, {count_of(machine.cores, 'core')}{governor}, {measured.instruction_set}")
    temperatures = (machine.temperature_before_c, machine.temperature_after_c)
    if None not in temperatures:
        console.print("{:.0f} degrees before, {:.0f} after".format(*temperatures))
    console.print(_rows(measured))
    console.print(
        f"ms are medians of steps of {count_of(measured.batch, 'image')} at so many threads, with the spread of the "
        "middle half; MB and images/s are of the most threads."
    )
    console.print(f"Written to {target}.", soft_wrap=True)


def _rows(measured: Profile) -> Shown:
    from rich.table import Table as Shown  # noqa: PLC0415

    shown = Shown(box=None, pad_edge=False)
    for column in ("row", "% MACs", *(f"ms on {count}" for count in measured.threads), "MB", "images/s"):
        shown.add_column(column, justify="right", no_wrap=True)
    full = measured.rows[-1].macs
    for number, row in enumerate(measured.rows):
        last = row.steps[-1]
        shown.add_row(
            str(number),
            f"{row.macs / full * 100:.1f}",
            *(f"{step.median_s * 1e3:.4g} ±{step.spread * 100:.0f}%" for step in row.steps),
            f"{last.peak_bytes / 1e6:.1f}",
            f"{measured.batch / last.median_s:.0f}",
        )
    return shown
