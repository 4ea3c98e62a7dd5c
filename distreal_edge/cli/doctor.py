"""`distreal-edge doctor`: what is well on this machine, what is not, and how to mend it."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from distreal_edge.cli.service import service_files
from distreal_edge.errors import ConfigError, DistrealError, printable
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from distreal_edge.config import Broker, DeviceConfig, FederationConfig
    from distreal_edge.doctor import Finding, ImagesReading

__all__ = ["doctor"]

_READING_S: Final = 30.0
_WINDOW_S: Final = 1.0
"""After so long a monitor knows what others use."""
_ROOM_BYTES: Final = 200_000_000
"""Room that a state folder should have in any case: updates, logs of steps, a ledger."""


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The TOML file of a device or of the federation.  [default: the service's in /etc/distreal-edge, if any]",
)
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
def doctor(config: Path | None, *, as_json: bool) -> None:
    """Look for what is wrong on this machine, and say how to mend it.

    Clock, processor, engine, memory, limits and heat are looked at in any case; with a configuration, so are its
    broker, certificates, state folder, disk, images, network and table. It takes some seconds, writes a few small files
    into the state folder and removes them, and changes nothing.

    Exit codes: 0 no problem; 1 there is one, and the table says how to mend it.
    """
    # What the parts that are tried would log is in the table.
    logging.getLogger("distreal_edge").addHandler(logging.NullHandler())
    path = _service() if config is None else config
    if as_json:
        findings = list(_examine(path))
        click.echo(_as_json(findings))
    else:
        findings = _show(_examine(path))
        if path is None:
            click.echo("With --config, broker, state folder, images, network and table are looked at as well.")
        elif not findings[0].passed:
            click.echo(
                "Once the configuration is sound, broker, state folder, images, network and table are looked at."
            )
    if not all(finding.passed for finding in findings):
        click.get_current_context().exit(DistrealError.exit_code)


def _service() -> Path | None:
    services = service_files()
    if len(services) > 1:
        raise ConfigError(f"say --config: both {' and '.join(map(str, services))} are there")
    return services[0] if services else None


# -- what is looked at ---------------------------------------------------------------------------------------------


def _examine(path: Path | None) -> Iterator[Finding]:
    from distreal_edge import doctor as checks  # noqa: PLC0415 - --help must be quick
    from distreal_edge.bench import describe_machine  # noqa: PLC0415
    from distreal_edge.config import DeviceConfig  # noqa: PLC0415
    from distreal_edge.device import Monitor  # noqa: PLC0415
    from distreal_edge.machine import Roots  # noqa: PLC0415

    config: DeviceConfig | FederationConfig | None = None
    running: int | None = None
    if path is not None:
        config, finding = _load(path)
        yield finding
    limits = config.resources.limits() if isinstance(config, DeviceConfig) else None
    monitor, began_s = Monitor(limits), time.monotonic()
    if config is not None:
        program = checks.read_program(
            Path(config.state).expanduser(), "device" if isinstance(config, DeviceConfig) else "aggregator"
        )
        running = program.process_id
        yield checks.judge_program(program)
    yield checks.judge_clock(checks.read_clock())
    if path is not None and config is not None:
        yield from _of_configuration(path, config, running=running is not None)
    time.sleep(max(0.0, _WINDOW_S - (time.monotonic() - began_s)))
    available = monitor.sample()  # before the engine is tried, which is not our own process
    yield from checks.judge_limits(checks.read_limits(Roots(), running), available, limits)
    yield checks.judge_engine(checks.read_engine(describe_machine().processor))
    yield from checks.judge_heat(checks.read_heat(Roots()))


def _load(path: Path) -> tuple[DeviceConfig | FederationConfig | None, Finding]:
    from distreal_edge.cli.run import load_profile, load_trace  # noqa: PLC0415
    from distreal_edge.config import DeviceConfig, find_role, load_config  # noqa: PLC0415
    from distreal_edge.doctor import Finding  # noqa: PLC0415

    try:
        config = load_config(path, find_role(path))
        if isinstance(config, DeviceConfig):
            load_trace(path, config.resources)
            load_profile(path, config.resources)
    except DistrealError as error:
        return None, Finding(
            "configuration", str(error), "mend it, or the file that it names; docs/configuration.md has every key"
        )
    return config, Finding("configuration", f"{path} is sound")


def _of_configuration(path: Path, config: DeviceConfig | FederationConfig, *, running: bool) -> Iterator[Finding]:
    from distreal_edge import doctor as checks  # noqa: PLC0415
    from distreal_edge.config import DeviceConfig  # noqa: PLC0415

    broker, findings = _broker(config.broker, running=running)
    yield from findings
    state = Path(config.state).expanduser()
    name: str | None
    if isinstance(config, DeviceConfig):
        yield from _profile_of(path, config, broker)
        needed_bytes, name = _ROOM_BYTES, config.data.name
    else:
        findings, model_bytes = _network(path, config)
        yield from findings
        models = max(0, _models_kept(config) - len(list(state.glob("models/*.safetensors"))))
        needed_bytes, name = _ROOM_BYTES + model_bytes * models, config.evaluation.name
    yield from checks.judge_disk(checks.read_disk(state), needed_bytes=needed_bytes)
    if name is not None:
        yield checks.judge_images(_images(path, name))


def _models_kept(config: FederationConfig) -> int:
    """Return how many models its state folder will hold at most, the evaluated one, and one that is being written."""
    every, rounds = config.keep.every_model, config.rounds.number + 1
    return min(rounds, config.keep.newest_models + (rounds // every + 1 if every else 0)) + 2


def _broker(broker: Broker, *, running: bool) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Return a session's arguments if the broker can be reached, and what is to be said of it and of certificates."""
    from distreal_edge import doctor as checks  # noqa: PLC0415
    from distreal_edge.cli.service import broker_arguments, handed_over_files  # noqa: PLC0415

    files = handed_over_files(broker)
    findings: list[Finding] = []
    if files is not None:
        findings += checks.judge_certificates(checks.read_certificates(files), time.time())
        findings += checks.judge_pair(checks.read_pair(files))
    try:
        arguments = broker_arguments(broker)
        reading = checks.read_broker(broker.host, broker.tcp_port, arguments["tls"], greet=not (files and running))
    except DistrealError as error:
        if all(finding.passed for finding in findings):
            findings.append(checks.Finding("broker", str(error), "mend [broker]; docs/configuration.md has every key"))
        return None, findings
    findings.insert(0, checks.judge_broker(reading))
    # A second connection with the same certificate would take the place of the program that runs.
    return arguments if findings[0].passed and reading.reached == "broker" else None, findings


def _network(path: Path, config: FederationConfig) -> tuple[list[Finding], int]:
    """Return what is to be said of network, table and profile, and how many bytes a model has."""
    from distreal_edge.bench import describe_machine  # noqa: PLC0415
    from distreal_edge.cli.aggregate import prepare  # noqa: PLC0415
    from distreal_edge.doctor import Finding, judge_profile  # noqa: PLC0415

    try:
        prepared = prepare(path, config)
    except DistrealError as error:
        return [Finding("network and table", str(error), "mend [network] or [table], or make the file anew")], 0
    network, table = prepared.network, prepared.table
    named = config.network.file or config.network.zoo
    findings = [Finding("network and table", f"{named}, {count_of(len(table.rows), 'row')} made for it")]
    if table.profile is not None:
        again = f"distreal-edge profile {named} --table {config.table.file}"
        findings.append(judge_profile(table.profile, describe_machine().processor, again))
    return findings, len(network.to_bytes())


def _profile_of(path: Path, config: DeviceConfig, broker: dict[str, Any] | None) -> Iterator[Finding]:
    """Yield what is to be said of the profile that a device's configuration names, if it does."""
    from distreal_edge.bench import describe_machine  # noqa: PLC0415
    from distreal_edge.cli.run import load_profile  # noqa: PLC0415
    from distreal_edge.doctor import judge_profile, read_table_digest  # noqa: PLC0415

    profile = load_profile(path, config.resources)
    if profile is not None:
        table = None if broker is None else read_table_digest(config.federation, **broker)
        again = f"distreal-edge profile NETWORK --table TABLE --out {config.resources.profile}"
        yield judge_profile(profile, describe_machine().processor, again, table=table)


def _images(path: Path, name: str) -> ImagesReading:
    from distreal_edge.doctor import ChildFailure, ImagesReading, run_child  # noqa: PLC0415

    try:
        answer = run_child("distreal_edge.cli.look", str(path), timeout_s=_READING_S)
    except ChildFailure as failure:
        if failure.timed_out:
            return ImagesReading(name, unfinished=True)
        return ImagesReading(name, failure=f"dataset {name}: reading it failed: {failure}")
    return ImagesReading(name, images=int(answer.get("images", 0)), failure=str(answer.get("failure", "")))


# -- how it is shown -----------------------------------------------------------------------------------------------


def _as_json(findings: list[Finding]) -> str:
    return json.dumps(
        {
            "problems": sum(not finding.passed for finding in findings),
            "checks": [
                {"check": each.check, "passed": each.passed, "found": each.found, "fix": each.remedy}
                for each in findings
            ],
        },
        indent=1,
    )


def _show(findings: Iterable[Finding]) -> list[Finding]:
    """Show findings as a table on a terminal, elsewhere as lines, as they come; return them."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, markup=False, emoji=False)
    shown: list[Finding] = []
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("", no_wrap=True)
        table.add_column("check", no_wrap=True)
        table.add_column("found", overflow="fold", ratio=1)
        table.add_column("how to fix", overflow="fold", ratio=1)
        with console.status("looking ..."):
            for finding in findings:
                shown.append(finding)
                verdict, style = ("PASSED", "green") if finding.passed else ("PROBLEM", "bold red")
                table.add_row(
                    Text(verdict, style), finding.check, printable(finding.found), printable(finding.remedy or "")
                )
        console.print(table)
    else:
        for finding in findings:
            shown.append(finding)
            click.echo(f"{'PASSED ' if finding.passed else 'PROBLEM'}  {finding.check}: {printable(finding.found)}")
            if finding.remedy is not None:
                click.echo(f"  HOW TO FIX: {printable(finding.remedy)}")
    problems = sum(not finding.passed for finding in shown)
    click.echo(f"{count_of(problems, 'problem')}." if problems else "No problems.")
    return shown
