"""`distreal-edge status`: ask a running device or aggregator what it is doing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from distreal_edge.cli.service import service_files
from distreal_edge.errors import ConfigError, DistrealError, printable
from distreal_edge.status import AggregatorStatus, DeviceStatus, ask
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.status import Answer, UpdateAnswer

__all__ = ["state_folder", "status"]

_OLD_S: Final = 5.0
"""A program tells anew every second; it is busy, or stuck, when what it told is older than this."""


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="The TOML file of a device or of the federation.")
@click.option("--state", "folder", type=click.Path(path_type=Path, readable=False), help="Its state folder, instead.")
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON, an object per line.")
def status(config: Path | None, folder: Path | None, *, as_json: bool) -> None:
    """Ask a running device or aggregator what it is doing.

    Without an option those are asked that run as services, by their files in /etc/distreal-edge. Another user's program
    answers to root only: use sudo.

    Exit codes: 0 it answered; 1 none is running; 8 it does not answer, or its folder is closed to you.
    """
    folders = _folders(config, folder)
    answers = [(each, ask(each)) for each in folders]
    if as_json:
        for each, answer in answers:
            click.echo(_as_json(each, answer))
    for each, answer in answers if not as_json else ():
        if answer is not None:
            click.echo("\n".join(printable(line) for line in _lines(each, answer)))
    silent = [str(each) for each, answer in answers if answer is None]
    if silent and as_json:
        click.get_current_context().exit(DistrealError.exit_code)
    if silent:
        raise DistrealError(
            f"{' and '.join(silent)}: nothing is running there; `journalctl -u 'distreal-edge-*'` says how a service "
            "ended, or that a broker refuses it"
        )


def state_folder(path: Path) -> Path:
    """Return the state folder that a configuration names; raise `ConfigError` when there is no such file."""
    from distreal_edge.config import find_role, load_config  # noqa: PLC0415 - --help must be quick

    return Path(load_config(path, find_role(path)).state).expanduser()


def _folders(config: Path | None, folder: Path | None) -> list[Path]:
    if config is not None and folder is not None:
        raise ConfigError("--config and --state: give one of them; a configuration names its state folder itself")
    if folder is not None:
        return [folder.expanduser()]
    if config is not None:
        return [state_folder(config)]
    services = service_files()
    if not services:
        raise ConfigError("no service is configured in /etc/distreal-edge; say --config or --state")
    return [state_folder(path) for path in services]


def _as_json(folder: Path, answer: Answer | None) -> str:
    import msgspec  # noqa: PLC0415

    told = {} if answer is None else msgspec.to_builtins(answer)
    return json.dumps({"folder": str(folder), "running": answer is not None, **told})


def _lines(folder: Path, answer: Answer) -> Iterator[str]:
    match answer.status:
        case DeviceStatus():
            yield f"{answer.status.device} of {answer.status.federation}: {answer.status.doing}"
            yield from _device(answer.status)
        case AggregatorStatus():
            yield f"aggregator of {answer.status.federation}: {answer.status.doing}"
            yield from _aggregator(answer.status)
        case None:
            yield f"{folder}: starting"
    if answer.age_s > _OLD_S:
        yield f"  told       {_duration(answer.age_s)} ago: it is busy since, or stuck"
    yield f"  process    {answer.process_id}, serves for {_duration(answer.uptime_s)}, version {answer.version}"


def _device(told: DeviceStatus) -> Iterator[str]:
    if told.row is not None:
        share = "" if told.macs_share is None else f", {told.macs_share:.0%} of the network"
        loss = "" if told.loss is None else f", loss {told.loss:.3g}"
        threads = "" if told.threads is None else f" on {count_of(told.threads, 'thread')}"
        yield f"  now        row {told.row}{threads}{share}; {told.images_per_s:.0f} images/s{loss}"
    yield f"  rounds     {_rounds(told)}"
    spends = [f"{told.cores:.2f} cores"]
    if told.memory_bytes is not None:
        spends.append(f"{told.memory_bytes / 1e6:.0f} MB")
    if told.temperature_c is not None:
        spends.append(f"{told.temperature_c:.0f} degrees")
    spends += ["held down by heat or power"] * told.throttled + ["on battery"] * told.on_battery
    yield f"  can spend  {', '.join(spends)}"
    if told.paused is not None:
        yield f"  pauses     {told.paused}"
    if told.safe_mode is not None:
        yield f"  safe mode  {told.safe_mode}"
    waiting = {0: "none waits", 1: "1 waits"}.get(told.spool, f"{told.spool} wait")
    yield f"  updates    {waiting} to be sent; {_answered(told.last_answer)}"
    yield f"  images     {told.images}"


def _aggregator(told: AggregatorStatus) -> Iterator[str]:
    accuracy = "not known yet" if told.accuracy is None else f"{told.accuracy:.2%}"
    number, closing = min(told.round, told.rounds), ", and the closing measurement" * (told.round > told.rounds)
    yield f"  rounds     {number} of {told.rounds}{closing}; accuracy {accuracy}"
    if told.deadline_s is not None:
        left_s = max(0.0, told.deadline_s - time.time())
        missing = sorted(set(told.selected) - set(told.answered))
        waits = f", waits for {_some(missing)}" if missing else ""
        yield f"  this one   {len(told.answered)} of {len(told.selected)} answered{waits}; {_duration(left_s)} left"
    yield f"  devices    {len(told.devices)} here{': ' if told.devices else ''}{_some(told.devices)}"
    if told.refused:
        reasons = [f"{count} {reason}" for reason, count in sorted(told.refused.items())]
        yield f"  refused    {count_of(sum(told.refused.values()), 'update')} so far: {', '.join(reasons)}"


def _rounds(told: DeviceStatus) -> str:
    if told.round is None:
        return "none was announced yet"
    if told.state == "training":
        return f"trains number {told.round}, {count_of(told.mini_batches, 'mini-batch', 'mini-batches')} so far"
    trained = (
        f"; {count_of(told.mini_batches, 'mini-batch', 'mini-batches')} in the last one that it trained"
        if told.mini_batches
        else ""
    )
    return f"number {told.round} was announced last{trained}"


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _answered(last: UpdateAnswer | None) -> str:
    if last is None:
        return "none was answered yet"
    reason = "" if last.reason is None else f": {last.reason}"
    return f"the last answer, {_duration(max(0.0, time.time() - last.time_s))} ago, was {last.kind}{reason}"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"
