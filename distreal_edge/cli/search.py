"""`distreal-edge search`: find Pareto-optimal dropout vectors, and fill a table with them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

import click

from distreal_edge.cli.ending import going_on_later
from distreal_edge.cli.files import is_there
from distreal_edge.cli.numbers import FiniteRange
from distreal_edge.dropout import DRAW_POLICIES
from distreal_edge.errors import ConfigError, DataError, StateError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.data import Dataset
    from distreal_edge.dropout import Table
    from distreal_edge.network import Network
    from distreal_edge.search.evidence import Evidence
    from distreal_edge.search.run import Progress as SearchProgress
    from distreal_edge.search.settings import SearchSettings
    from distreal_edge.search.study import SearchStudy

__all__ = ["search"]

_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_DIGITS: Final = 4
_LONGEST_SUFFIX: Final = ".evidence.json.unfinished"
"""Of what is written beside a table."""
_VALIDATION_IMAGES: Final = 4096
"""With a thousand of CIFAR-10's, which images they are makes 0.005 nats between two vectors: as much as their worth."""


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        seconds = 0.0
        if match is not None and len(str(value)) <= 32:
            hours, minutes, rest = (float(part or 0.0) for part in match.groups())
            seconds = 3600.0 * hours + 60.0 * minutes + rest
        if not 1.0 <= seconds <= 365 * 86400.0:
            self.fail(f"{value!r} is no time: write 30m, 2h, 1h30m or 90s", param, ctx)
        return seconds


class _Numbers(click.ParamType[tuple[int, ...]]):
    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) <= 8 for part in parts):
            self.fail(f"{value!r}: write whole numbers with commas between them, as 400,2000", param, ctx)
        return tuple(int(part) for part in parts)


@click.command()
@click.argument("network")
@click.option("--data", required=True, help="A dataset's name, as cifar10 or fashion-mnist.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="The dataset's folder or file, if not in the usual places."
)
@click.option("--images", type=click.IntRange(64), help="Take only the first of the dataset's images.")
@click.option("--draw", default="ordered", show_default=True, type=click.Choice(sorted(DRAW_POLICIES)))
@click.option(
    "--budget",
    default="30m",
    show_default=True,
    type=_Duration(),
    help="How long this machine may search; the least that is confirmed may take longer.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The table's JSON file.")
@click.option("--storage", help="A database's URL, to share the search.  [default: OUT with .search.db, SQLite]")
@click.option("--study", "name", help="The search's name in the storage.  [default: NETWORK DATA DRAW]")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes, of one thread each.  [default: all cores]")
@click.option("--cost", default="macs", show_default=True, type=click.Choice(["macs", "seconds"]))
@click.option("--profile", "profile_path", type=click.Path(path_type=Path), help="A board's profile, for seconds.")
@click.option("--memory", is_flag=True, help="Peak memory is a third objective.")
@click.option("--cheapest", default=0.04, show_default=True, type=FiniteRange(1e-4, 0.9), help="Least share of cost.")
@click.option("--rows", default=32, show_default=True, type=click.IntRange(16, 64), help="The most rows of the table.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(2, 4096))
@click.option("--lr", default=0.05, show_default=True, type=FiniteRange(1e-6, 100.0))
@click.option("--snapshots", default="400,2000", show_default=True, type=_Numbers(), help="Mini-batches before each.")
@click.option(
    "--steps", default=100, show_default=True, type=click.IntRange(2, 10**6), help="Mini-batches of a screening."
)
@click.option(
    "--confirm-steps", default=400, show_default=True, type=click.IntRange(2, 10**6), help="And of a confirmation."
)
@click.option("--confirm-seeds", default=3, show_default=True, type=click.IntRange(1, 1000), help="Its repetitions.")
@click.option(
    "--validation-images", type=click.IntRange(2, 10**7), help="Images set aside.  [default: 4096, a fifth at most]"
)
@click.option("--population", default=16, show_default=True, type=click.IntRange(4, 10_000), help="Of NSGA-II.")
@click.option("--crop-padding", default=0, show_default=True, type=click.IntRange(0, 64), help="Of a zoo network.")
@click.option("--horizontal-flip", is_flag=True, help="Of a zoo network: mirror every other image in training.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31))
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
def search(**given: Any) -> None:
    """Search the dropout vectors that teach a network most for what they cost, and write a table of them.

    NETWORK is the name of a network in the zoo, or a network's file. A search that was stopped or killed goes on where
    it was, when the same command is given again; a longer --budget prolongs one that has ended. With --storage on a
    database, several machines search together. Beside the table come its evidence and three pictures.
    """
    from distreal_edge.search.run import run_search  # noqa: PLC0415 - --help must be quick
    from distreal_edge.search.storage import file_url  # noqa: PLC0415
    from distreal_edge.search.worker import Images, Job  # noqa: PLC0415

    out: Path = given["out"]
    _check_target(out)
    images = Images(given["data"], given["root"], given["images"])
    dataset = images.load()
    if len(set(dataset.labels.tolist())) < 2:
        raise DataError(
            f"dataset {dataset.name}: all its {len(dataset)} images are of one class: nothing can be learned"
        )
    network = _network(given, dataset)
    if max(network.plan.sizes, default=1) == 1:
        raise ConfigError(f"{given['network']} has no filters that can be dropped: there is nothing to search")
    profile = _profile(given, network)
    settings = _settings(given, network, dataset, None if profile is None else profile.to_bytes())
    name = given["name"] or f"{settings.network} {settings.data} {settings.recipe.draw}"
    storage = given["storage"] or file_url(out.with_suffix(".search.db").resolve())
    job = Job(storage, name, settings, network.to_bytes(), images, profile)
    workers = given["workers"] or len(os.sched_getaffinity(0))
    data = job.hold_out(dataset)  # before anything is stored that a corrected command would contradict
    with job.open_study(network) as study:

        def search_on(report: Callable[[SearchProgress], None]) -> None:
            run_search(
                job,
                network,
                study,
                data,
                budget_s=given["budget"],
                workers=workers,
                candidates=2 * given["rows"],
                report=report,
            )

        with going_on_later():
            _with_a_bar(search_on)
        table, evidence = _finish(job.settings, network, study, out, given, profile)
    _show(table, evidence, out, as_json=given["as_json"])


def _check_target(out: Path) -> None:
    # Before hours of searching, not after.
    try:
        if out.is_dir():
            raise ConfigError(f"--out {out} is a folder; name the table's file")
        folder = out.resolve().parent
        if not folder.is_dir():
            raise ConfigError(f"--out {out}: there is no folder {folder}; make it first")
        if out.suffix != ".json" or not str(out).isprintable():
            raise ConfigError(f"--out {out}: a table is a JSON file; end its name in .json, of plain characters")
        out.with_suffix(_LONGEST_SUFFIX).exists()
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {out}: no files can be written there: {error.strerror}; name a file in a folder of yours"
        ) from None


def _network(given: dict[str, Any], dataset: Dataset) -> Network:
    import numpy as np  # noqa: PLC0415

    from distreal_edge.network import Network, Preprocessing  # noqa: PLC0415
    from distreal_edge.zoo import NETWORKS  # noqa: PLC0415

    shape = dataset.images.shape[1:]
    if given["network"] in NETWORKS:
        if shape[1] != shape[2]:
            raise ConfigError(f"the zoo's networks take square images; those of {dataset.name} are {list(shape[1:])}")
        share = dataset.images[:: max(1, len(dataset) // 10_000)] / np.float32(255.0)
        preprocessing = Preprocessing(
            tuple(round(float(mean), _DIGITS) for mean in share.mean(axis=(0, 2, 3))),
            tuple(max(1e-3, round(float(std), _DIGITS)) for std in share.std(axis=(0, 2, 3))),
            given["crop_padding"],
            given["horizontal_flip"],
        )
        return NETWORKS[given["network"]](
            classes=dataset.classes,
            in_channels=shape[0],
            image_size=shape[1],
            seed=given["seed"],
            preprocessing=preprocessing,
        )
    if not is_there(Path(given["network"])):
        raise ConfigError(
            f"{given['network']!r} is neither a network's file nor in the zoo, which has {', '.join(sorted(NETWORKS))}"
        )
    if given["crop_padding"] or given["horizontal_flip"]:
        raise ConfigError("--crop-padding and --horizontal-flip are for networks of the zoo; a file says its own")
    network = Network.load(given["network"])
    if network.plan.input_shape != shape or network.plan.classes < dataset.classes:
        raise ConfigError(
            f"{given['network']} takes images {list(network.plan.input_shape)} of {network.plan.classes} classes; "
            f"those of {dataset.name} are {list(shape)}, of {dataset.classes} classes"
        )
    return network


def _profile(given: dict[str, Any], network: Network) -> Any:
    from distreal_edge.dropout import Profile  # noqa: PLC0415
    from distreal_edge.search.cost import SecondsModel  # noqa: PLC0415

    if (given["cost"] == "seconds") != (given["profile_path"] is not None):
        raise ConfigError("--cost seconds and --profile FILE go together: `distreal-edge profile` makes the file")
    if given["profile_path"] is None:
        return None
    profile = Profile.load(given["profile_path"])
    if profile.network != network.structure or profile.batch != given["batch"]:
        raise ConfigError(f"{given['profile_path']} is of another network or another batch; profile this one")
    error = SecondsModel(profile).error
    click.echo(f"distreal-edge: the profile predicts the seconds of its own rows to {100 * error:.1f} %", err=True)
    return profile


def _settings(given: dict[str, Any], network: Network, dataset: Dataset, profile: bytes | None) -> SearchSettings:
    import hashlib  # noqa: PLC0415

    from distreal_edge.search.settings import SearchSettings, dataset_digest  # noqa: PLC0415
    from distreal_edge.search.speed import Horizon, Recipe  # noqa: PLC0415

    return SearchSettings(
        network=Path(given["network"]).stem,
        network_digest=hashlib.sha256(network.to_bytes()).hexdigest(),
        structure=network.structure,
        data=given["data"],
        data_digest=dataset_digest(dataset),
        recipe=Recipe(draw=given["draw"], batch=given["batch"], lr=given["lr"]),
        snapshots_at=given["snapshots"],
        screening=Horizon(given["steps"], (1,)),
        confirmation=Horizon(given["confirm_steps"], tuple(range(101, 101 + given["confirm_seeds"]))),
        validation_images=given["validation_images"] or max(2, min(_VALIDATION_IMAGES, len(dataset) // 5)),
        cheapest=given["cheapest"],
        cost=given["cost"],
        profile_digest=None if profile is None else hashlib.sha256(profile).hexdigest(),
        memory=given["memory"],
        population=given["population"],
        seed=given["seed"],
    )


def _finish(
    settings: SearchSettings, network: Network, study: SearchStudy, out: Path, given: dict[str, Any], profile: Any
) -> tuple[Table, Evidence]:
    from distreal_edge.search.choice import confirmed_vectors, estimated_scores, table_of  # noqa: PLC0415
    from distreal_edge.search.cost import CostOf  # noqa: PLC0415
    from distreal_edge.search.evidence import gather_evidence  # noqa: PLC0415

    evaluations, confirmations = study.evaluations(), study.confirmations()
    confirmed = confirmed_vectors(confirmations)
    cost_of = CostOf(network, settings.recipe.batch, profile)
    costs = {counts: cost_of(counts)[0] for counts in confirmed}
    scores = estimated_scores(confirmed, costs)
    table = table_of(
        network,
        scores,
        draw=settings.recipe.draw,
        data=settings.data,
        origin=f"search, {len(evaluations)} vectors, seed {settings.seed}",
        batch=settings.recipe.batch,
        rows=given["rows"],
    )
    evidence = gather_evidence(network, settings, table, costs, scores, evaluations, confirmations)
    table.save(out)
    evidence.save(out.with_suffix(".evidence.json"))
    try:
        _draw(evidence, out)
    except OSError as error:
        raise StateError(
            f"{out} and its evidence are written, but its pictures cannot be: {error.strerror}; make room, and give "
            "the same command again"
        ) from None
    return table, evidence


def _draw(evidence: Evidence, out: Path) -> None:
    try:
        import matplotlib  # noqa: F401, ICN001, PLC0415
    except ImportError:
        click.echo("distreal-edge: no pictures without matplotlib: pip install 'distreal-edge[plots]'", err=True)
        return
    from distreal_edge.search.pictures import draw_front, draw_hypervolume, draw_rates  # noqa: PLC0415

    settings = evidence.settings
    title = f"{settings.network} on {settings.data}, {settings.recipe.draw} draws"
    draw_front(evidence, out.with_suffix(".front.png"), title=f"{title}: what a row's mini-batches are worth")
    draw_rates(evidence, out.with_suffix(".rates.png"), title=f"{title}: what each group keeps")
    draw_hypervolume(evidence, out.with_suffix(".hypervolume.png"), title=f"{title}: the search")


def _with_a_bar(work: Callable[[Callable[[SearchProgress], None]], None]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading images", total=None, left="")
        phase = ""

        def report(now: SearchProgress) -> None:
            nonlocal phase
            words = _words(now)
            if now.phase != phase:
                phase = now.phase
                bar.reset(task)
                if not console.is_terminal:
                    click.echo(f"distreal-edge: {words}", err=True)
            left = "" if now.left_s is None else f"{_clock(now.left_s)} left"
            bar.update(task, description=words, completed=now.done, total=now.total, left=left)

        work(report)


def _words(now: SearchProgress) -> str:
    if now.phase == "snapshots":
        return "training at mixed rates"
    if now.phase == "confirmation":
        return f"confirming: {now.done:.0f} of {count_of(round(now.total), 'training')}"
    reached = f", hypervolume {now.hypervolume:.4f}" if now.vectors else ""
    return f"screening: {count_of(now.vectors, 'vector')}{reached}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _show(table: Table, evidence: Evidence, out: Path, *, as_json: bool) -> None:
    figures = {
        "table": str(out),
        "rows": len(table.rows),
        "screened": len(evidence.screened),
        "confirmed": len(evidence.confirmed),
        "hypervolume": evidence.hypervolumes["found"],
        "hypervolume_uniform": evidence.hypervolumes["uniform"],
    }
    if as_json:
        click.echo(json.dumps(figures))
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table as Shown  # noqa: PLC0415

    from distreal_edge.search.choice import LEAST_ROWS  # noqa: PLC0415

    console = Console(highlight=False)
    shown = Shown(box=None, pad_edge=False)
    for column in ("row", "MACs", "MB", "score", "kept of each group (%)"):
        shown.add_column(column, justify="left" if column.startswith("kept") else "right")
    full = table.rows[-1].macs
    for number, row in enumerate(table.rows):
        kept = " ".join(f"{100 * (1 - rate):.0f}" for rate in row.vector)
        shown.add_row(
            str(number), f"{100 * row.macs / full:.1f} %", f"{row.peak_bytes / 1e6:.1f}", f"{row.score:.4f}", kept
        )
    console.print(shown)
    console.print(
        f"Screened: {count_of(len(evidence.screened), 'vector')}, {len(evidence.confirmed)} confirmed. Hypervolume "
        f"{figures['hypervolume']:.4f} nats, of uniform rates {figures['hypervolume_uniform']:.4f}.\n"
        f"{out}, with its evidence and pictures beside it.",
        markup=False,
        soft_wrap=True,
    )
    if len(table.rows) < LEAST_ROWS:
        console.print(
            f"Above the noise: only {count_of(len(table.rows), 'row')}; "
            "a longer --budget or more --confirm-seeds give more.",
            soft_wrap=True,
        )
