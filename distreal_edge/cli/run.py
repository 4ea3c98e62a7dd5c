"""`distreal-edge run`: one device."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from distreal_edge.cli.logs import log_format_option, start_logging
from distreal_edge.cli.notify import Service
from distreal_edge.cli.service import broker_arguments, keep_serving, stopping_on_signals
from distreal_edge.config import DeviceConfig, DeviceData, load_config, named_by
from distreal_edge.errors import ConfigError, TableError
from distreal_edge.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.cli.logs import LogFormat
    from distreal_edge.config import Resources
    from distreal_edge.data import Dataset
    from distreal_edge.device import Board, Ran, Trace
    from distreal_edge.dropout import Profile

__all__ = ["load_profile", "load_trace", "run"]

_log = logging.getLogger(__name__)

# For trying out the watchdog: work number N on the board (mini-batches, measurements) and all after it never end.
_DEADLOCK = "DISTREAL_EDGE_TEST_DEADLOCK"


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path), help="The device's TOML file.")
@click.option("--trace", type=click.Path(path_type=Path), help="Follow this trace of `seconds,cores` instead.")
@log_format_option
def run(path: Path, trace: Path | None, log_format: LogFormat) -> None:
    """Take part in a federation with this board, until stopped."""
    from distreal_edge import __version__  # noqa: PLC0415 - --help must be quick
    from distreal_edge.device import DeviceDaemon, Trace, become_guest  # noqa: PLC0415

    start_logging(log_format)
    become_guest()
    config = load_config(path, DeviceConfig)
    broker = broker_arguments(config.broker)
    followed = load_trace(path, config.resources) if trace is None else Trace.load(trace.expanduser())
    if followed is not None:
        _log.info("follows %s; limits and profile of this machine do not count", trace or config.resources.trace)
    profile = load_profile(path, config.resources) if followed is None else None
    check_engine()
    dataset = load_images(config.data)
    pulse = Pulse()
    daemon: DeviceDaemon | None = None

    def note_end() -> None:
        if daemon is not None:
            daemon.note_end()

    with (
        Service(pulse, loop_must_turn=True) as service,
        stopping_on_signals(forced=True, asked_first=note_end) as stop,
    ):
        daemon = DeviceDaemon(
            federation=config.federation,
            device=config.device,
            dataset=dataset,
            board=_deadlocked_when_asked(_board(config.resources, followed, stop), os.environ.get(_DEADLOCK)),
            state=Path(config.state).expanduser(),
            version=__version__,
            broker=broker,
            log_steps=config.log_steps,
            tell=service.turn,
            pulse=pulse,
            profile=profile,
        )
        keep_serving(lambda: daemon.run(stop), stop, service.turn)


def load_trace(config: Path, resources: Resources) -> Trace | None:
    """Return the trace that stands in for the real availability, if the configuration names one."""
    from distreal_edge.device import Trace  # noqa: PLC0415

    if resources.trace is None:
        return None
    with named_by(config, "resources", "trace"):
        return Trace.load(Path(resources.trace).expanduser())


def load_profile(config: Path, resources: Resources) -> Profile | None:
    """Return the profile that the configuration names; raise `ConfigError` when it cannot be read."""
    from distreal_edge.dropout import Profile  # noqa: PLC0415

    if resources.profile is None:
        return None
    with named_by(config, "resources", "profile"):
        try:
            return Profile.load(Path(resources.profile).expanduser())
        except TableError as error:
            raise ConfigError(str(error)) from None


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


class _Deadlocking:
    """A board on which the trainer waits, from some work on, for what never comes: the fault that a watchdog is for."""

    def __init__(self, board: Board, sound: int) -> None:
        self._board = board
        self._sound = sound

    def __getattr__(self, name: str) -> object:
        return getattr(self._board, name)

    def run(self, work: Callable[[int], float], threads: int, macs: int = 0) -> Ran:
        if self._sound == 0:
            threading.Event().wait()
        self._sound -= 1
        return self._board.run(work, threads, macs)


def _deadlocked_when_asked(board: Board, asked: str | None) -> Board:
    if asked is None:
        return board
    if not asked.isdecimal():
        raise ConfigError(f"{_DEADLOCK}={asked}: must be a whole number; unset it unless you test the watchdog")
    return cast("Board", _Deadlocking(board, int(asked)))
