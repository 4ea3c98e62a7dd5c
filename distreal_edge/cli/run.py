"""`distreal-edge run`: one device."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distreal_edge.cli.service import broker_arguments, start_logging, stopping_on_signals
from distreal_edge.config import DeviceConfig, DeviceData, load_config

if TYPE_CHECKING:
    from distreal_edge.config import Resources
    from distreal_edge.data import Dataset
    from distreal_edge.device import Board, Trace

__all__ = ["load_trace", "run"]


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The device's TOML file.")
@click.option("--trace", type=click.Path(path_type=Path), help="Follow this trace of `seconds,cores` instead.")
def run(path: Path, trace: Path | None) -> None:
    """Take part in a federation with this board, until stopped."""
    from distreal_edge import __version__  # noqa: PLC0415 - --help must be quick
    from distreal_edge.device import DeviceDaemon  # noqa: PLC0415

    start_logging()
    config = load_config(path, DeviceConfig)
    broker = broker_arguments(config.broker)
    followed = load_trace(config.resources, trace)
    check_engine()
    dataset = load_images(config.data)
    with stopping_on_signals() as stop:
        DeviceDaemon(
            federation=config.federation,
            device=config.device,
            dataset=dataset,
            board=_board(config.resources, followed, stop),
            state=Path(config.state).expanduser(),
            version=__version__,
            broker=broker,
            log_steps=config.log_steps,
        ).run(stop)


def load_trace(resources: Resources, instead: Path | None = None) -> Trace | None:
    """Return the trace that stands in for the real availability, if one does."""
    from distreal_edge.device import Trace  # noqa: PLC0415

    path = instead if instead is not None or resources.trace is None else Path(resources.trace)
    return None if path is None else Trace.load(path.expanduser())


def check_engine() -> None:
    """Raise `ConfigError` when nothing here can train, before a round is lost for it."""
    from distreal_edge.engine import Engine  # noqa: PLC0415
    from distreal_edge.network import Network, PlanBuilder  # noqa: PLC0415

    builder = PlanBuilder((1, 1, 1))
    Engine(Network.initialise(builder.finish(builder.linear("fc", builder.flatten(builder.input), 2))))


def load_images(data: DeviceData) -> Dataset:
    """Return the images that the configuration names, or this device's shard of them."""
    from distreal_edge.data import load_dataset, shard_indices, split_off  # noqa: PLC0415

    whole = load_dataset(data.name, root=None if data.root is None else Path(data.root), split="train")
    shard = data.shard
    if shard is None:
        return whole
    rest, _ = split_off(len(whole), shard.held_back, shard.seed)
    writers = None if whole.writers is None else whole.writers[rest]
    shards = shard_indices(
        whole.labels[rest],
        kind=shard.kind,
        shards=shard.shards,
        seed=shard.seed,
        alpha=shard.alpha,
        writers=writers,
        smallest=min(32, len(rest) // shard.shards),
    )
    return whole.take(rest[shards[shard.index]])


def _board(resources: Resources, trace: Trace | None, stop: threading.Event) -> Board:
    from distreal_edge.device import Monitor, RealBoard, TraceBoard  # noqa: PLC0415

    if trace is None:
        monitor = Monitor(resources.limits())
        # Mini-batches may take seconds, and a change must show within one.
        threading.Thread(target=monitor.follow, args=(stop,), name="monitor", daemon=True).start()
        return RealBoard(monitor)
    return TraceBoard(trace, core_speed=resources.core_speed, stop=stop)
