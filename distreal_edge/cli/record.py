"""`distreal-edge record`: write down what this board has free, moment by moment."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from distreal_edge.cli.logs import start_logging
from distreal_edge.cli.numbers import FiniteRange
from distreal_edge.cli.service import stopping_on_signals
from distreal_edge.config import DeviceConfig, load_config
from distreal_edge.errors import ConfigError, StateError

if TYPE_CHECKING:
    import threading

    from distreal_edge.device import OwnerLimits

__all__ = ["record"]


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The trace's file, which is made anew.")
@click.option("--seconds", type=FiniteRange(0.0, 1e9, min_open=True), help="How long.  [default: until stopped]")
@click.option(
    "--interval",
    default=0.25,
    show_default=True,
    type=FiniteRange(0.25, 3600.0),
    help="Seconds between two looks at the machine.",
)
@click.option("--config", type=click.Path(path_type=Path), help="A device's TOML file, whose limits then count.")
def record(out: Path, seconds: float | None, interval: float, config: Path | None) -> None:
    """Record a trace of this board: cores, memory and temperature, as a device here would see them.

    The file has the columns `seconds,cores,memory,temperature`, and a line whenever something has changed, at least
    every five seconds. `run --trace` and `demo --trace` follow it. A device that trains here takes what it uses out of
    the trace: stop it first.

    Exit codes: 0 after --seconds, SIGTERM or a closed terminal, 130 after Ctrl-C, with a whole trace either way; 2 and
    8 as everywhere.
    """
    start_logging()
    limits = None if config is None else _limits(config)
    with stopping_on_signals() as stop, _Output(out) as output:
        _tell(f"recording to {out}" + (", Ctrl-C ends it" if seconds is None else ""))
        lines, lasted_s = _record(output, limits, seconds, interval, stop)
        _tell(f"{out}: {lines} line{'s' if lines > 1 else ''} over {lasted_s:.1f} s")


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed has nobody to tell
        click.echo(line, err=True)


def _limits(path: Path) -> OwnerLimits:
    resources = load_config(path, DeviceConfig).resources
    if resources.trace is not None:
        raise ConfigError(f"{path}: its board follows a trace; record without --config")
    return resources.limits()


def _record(
    output: _Output, limits: OwnerLimits | None, seconds: float | None, interval: float, stop: threading.Event
) -> tuple[int, float]:
    from distreal_edge.device import Monitor  # noqa: PLC0415 - --help must be quick
    from distreal_edge.device.recording import HEADER, Recorder  # noqa: PLC0415
    from distreal_edge.device.trace import MOST_LINES  # noqa: PLC0415

    monitor, recorder = Monitor(limits), Recorder()
    stop.wait(min(interval, seconds or interval))  # what others use is known after a while only
    output.write(HEADER)
    began_s, lines = time.monotonic(), 0
    while True:
        sample, second = monitor.sample(), time.monotonic() - began_s
        line = recorder.line(second, sample)
        if line is not None:
            output.write(line)
            lines += 1
        if lines == MOST_LINES:
            _tell(f"{MOST_LINES} lines are the most that a trace may have")
            return lines, second
        left_s = interval if seconds is None else seconds - second
        if left_s <= 0.0 or stop.wait(min(interval, left_s)):
            return lines, second


class _Output:
    """A new file that holds whole lines only, whatever ends this program."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise ConfigError(f"--out {self._path}: is there already; remove it, or give another name") from None
        except OSError as error:
            raise ConfigError(f"--out {self._path}: cannot be made: {error.strerror}") from None
        self._written = 0
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def write(self, line: str) -> None:
        """Hand a line to Linux at once, whole or not at all."""
        data = line.encode()
        try:
            whole = os.write(self._file, data) == len(data)
            reason = "the disk is full"
        except OSError as error:
            whole, reason = False, error.strerror or str(error)
        if not whole:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._written)
            raise StateError(f"{self._path}: cannot be written: {reason}; what was recorded so far is whole")
        self._written += len(data)
