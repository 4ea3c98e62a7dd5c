"""`distreal-edge aggregate`: the averaging side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from distreal_edge.cli.service import start_logging, stopping_on_signals
from distreal_edge.config import FederationConfig, load_config

if TYPE_CHECKING:
    from distreal_edge.config import Evaluation, NetworkChoice, TableChoice
    from distreal_edge.data import Dataset
    from distreal_edge.dropout import Table
    from distreal_edge.network import Network

__all__ = ["aggregate"]


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The federation's TOML file.")
def aggregate(path: Path) -> None:
    """Lead a federation through its rounds; continue where it was stopped."""
    from distreal_edge.aggregator import Aggregator, Lesson, RoundSettings  # noqa: PLC0415 - --help must be quick

    start_logging()
    config = load_config(path, FederationConfig)
    network = build_network(config.network)
    table = build_table(config.table, network, config.training.batch)
    test, calibration = load_held_out(config.evaluation)
    rounds, training = config.rounds, config.training
    settings = RoundSettings(
        number=rounds.number,
        seconds=rounds.seconds,
        upload_seconds=rounds.upload_seconds,
        least_devices=rounds.least_devices,
        devices_per_round=rounds.devices_per_round,
        seed=rounds.seed,
        closing_measurement=Aggregator.needs_closing_measurement(network, calibration),
    )
    lesson = Lesson(
        batch=training.batch,
        lr=training.lr,
        final_lr=training.final_lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        epochs=training.epochs,
        most_epochs=training.most_epochs,
        statistics_images=training.statistics_images,
        average=training.average,
        ceilings=tuple((step.from_share, step.ceiling) for step in config.ceiling),
    )
    with stopping_on_signals() as stop:
        Aggregator(
            federation=config.federation,
            network=network,
            table=table,
            settings=settings,
            lesson=lesson,
            state=Path(config.state),
            broker={
                "host": config.broker.host,
                "port": config.broker.port,
                "allow_plaintext": config.broker.allow_plaintext,
            },
            test=test,
            calibration=calibration,
        ).run(stop)


def build_network(choice: NetworkChoice) -> Network:
    """Return the network that the configuration names."""
    from distreal_edge import zoo  # noqa: PLC0415
    from distreal_edge.errors import ConfigError  # noqa: PLC0415
    from distreal_edge.network import Network, Preprocessing  # noqa: PLC0415

    if (choice.file is None) == (choice.zoo is None):
        raise ConfigError("network: give either a file, or the name of a network in the zoo")
    if choice.file is not None:
        return Network.load(choice.file)
    if choice.zoo is None or choice.zoo not in zoo.NETWORKS:
        raise ConfigError(f"network.zoo: unknown network {choice.zoo!r}; choose one of {', '.join(zoo.NETWORKS)}")
    return zoo.NETWORKS[choice.zoo](
        classes=choice.classes,
        in_channels=choice.in_channels,
        image_size=choice.image_size,
        seed=choice.seed,
        preprocessing=Preprocessing(choice.mean, choice.std, choice.crop_padding, choice.horizontal_flip),
    )


def build_table(choice: TableChoice, network: Network, batch: int) -> Table:
    """Return the table that the configuration names, checked against the network."""
    from distreal_edge.dropout import Table  # noqa: PLC0415
    from distreal_edge.search import uniform_table  # noqa: PLC0415

    if choice.file is not None:
        table = Table.load(choice.file)
        table.check_network(network.digest, network.plan.sizes)
        return table
    return uniform_table(network, draw=choice.draw, batch=batch, rows=choice.rows, keep_streams=choice.keep_streams)


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
