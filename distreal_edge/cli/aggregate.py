"""`distreal-edge aggregate`: the averaging side."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distreal_edge.cli.logs import log_format_option, start_logging
from distreal_edge.cli.notify import Service
from distreal_edge.cli.service import broker_arguments, keep_serving, stopping_on_signals
from distreal_edge.config import FederationConfig, build_network, build_table, load_config, named_by
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from distreal_edge.aggregator import Lesson, RoundSettings
    from distreal_edge.cli.logs import LogFormat
    from distreal_edge.config import Evaluation, TableChoice
    from distreal_edge.data import Dataset
    from distreal_edge.dropout import Table
    from distreal_edge.network import Network

__all__ = ["Prepared", "aggregate", "prepare"]


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The federation's TOML file.")
@log_format_option
def aggregate(path: Path, log_format: LogFormat) -> None:
    """Lead a federation through its rounds; continue where it was stopped."""
    from distreal_edge.aggregator import Aggregator, Keeping  # noqa: PLC0415 - --help must be quick

    start_logging(log_format)
    config = load_config(path, FederationConfig)
    broker = broker_arguments(config.broker)
    prepared = prepare(path, config)
    test, calibration = load_held_out(config.evaluation)
    # A start may read gigabytes of updates before its first turn.
    with Service(loop_must_turn=False) as service, stopping_on_signals(forced=True) as stop:
        aggregator = Aggregator(
            federation=config.federation,
            network=prepared.network,
            table=prepared.table,
            settings=prepared.settings,
            lesson=prepared.lesson,
            state=Path(config.state).expanduser(),
            broker=broker,
            test=test,
            calibration=calibration,
            threads=len(os.sched_getaffinity(0)),
            keeping=Keeping(config.keep.newest_models, config.keep.every_model),
            tell=service.turn,
        )
        keep_serving(lambda: aggregator.run(stop), stop, service.turn)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a configuration stands for, images aside."""

    network: Network
    table: Table
    settings: RoundSettings
    lesson: Lesson


def prepare(path: Path, config: FederationConfig) -> Prepared:
    """Make what the configuration at `path` says, images aside; raise an error of ours where it cannot be made."""
    from distreal_edge.config.lesson import build_lesson, build_rounds  # noqa: PLC0415

    rounds, training = config.rounds, config.training
    with named_by(path, "network", "zoo" if config.network.file is None else "file"):
        network = build_network(config.network)
    measured_here = config.evaluation.calibration_images > 0 or not network.plan.statistics
    if not measured_here and training.statistics_images == 0:
        with named_by(path, "training", "statistics_images"):
            raise ConfigError(
                "0 leaves nobody to measure batch-norm statistics; let devices measure them on some images, or set "
                "evaluation.calibration_images"
            )
    with _table_named_by(path, config.table):
        table = build_table(config.table, network, training.batch)
    return Prepared(
        network,
        table,
        build_rounds(rounds, seed=rounds.seed, closing_measurement=not measured_here),
        build_lesson(training, tuple((step.from_share, step.ceiling) for step in config.ceiling)),
    )


def _table_named_by(path: Path, choice: TableChoice) -> AbstractContextManager[None]:
    if choice.file is None and choice.name is None:
        return nullcontext()
    return named_by(path, "table", "name" if choice.file is None else "file")


def load_held_out(evaluation: Evaluation) -> tuple[Dataset | None, Dataset | None]:
    """Return the held-out test images, and the calibration images that are in nobody's shard."""
    from distreal_edge.data import load_dataset, split_off  # noqa: PLC0415

    if evaluation.name is None:
        return None, None
    root = None if evaluation.root is None else Path(evaluation.root)
    test = load_dataset(evaluation.name, root=root, split="test")
    if evaluation.images is not None and evaluation.images < len(test):
        _, chosen = split_off(len(test), evaluation.images, evaluation.seed)
        test = test.take(chosen)
    if evaluation.calibration_images == 0:
        return test, None
    train = load_dataset(evaluation.name, root=root, split="train")
    _, held_back = split_off(len(train), evaluation.calibration_images, evaluation.seed)
    return test, train.take(held_back)
