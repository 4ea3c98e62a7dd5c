"""`distreal-edge keys`: who may take part in a federation."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from distreal_edge.identity import Issued, KeyFolder

__all__ = ["keys"]

_MOST_DAYS: Final = 7300
_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("keys"),
    show_default=True,
    help="Where the federation's keys are.",
)
_days = click.option(
    "--days",
    type=click.IntRange(1, _MOST_DAYS),
    default=1825,
    show_default=True,
    help="For how long the certificates are good.",
)


@click.group()
def keys() -> None:
    """Make, list, renew and take back the certificates of a federation.

    All of it is in one folder. Whoever can read it can let anybody in: it belongs on one machine, with a copy of it
    where nobody else can read that. docs/identity.md goes through it step by step.
    """


@keys.command()
@click.option("--federation", required=True, help="The federation's name, as in all configuration files.")
@click.option(
    "--broker",
    "hosts",
    required=True,
    multiple=True,
    metavar="HOST",
    help="A name or address by which the broker is reached; the first is written into enrolment files.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True, help="Where it listens.")
@_folder
def create(federation: str, hosts: tuple[str, ...], port: int, folder: Path) -> None:
    """Make a federation's authority, and the certificates of its broker and its aggregator."""
    from distreal_edge.identity import KeyFolder  # noqa: PLC0415 - --help must be quick

    made = KeyFolder.create(folder, federation, hosts, port, _now())
    click.echo(f"{folder}: the keys of {federation}; whoever can read them can let anybody in")
    _tell([folder / "broker", folder / "enrolment" / "aggregator.enrolment"])
    click.echo(f"the revocation list runs out on {_day(made.list_runs_out)}; `distreal-edge keys renew` signs it again")


@keys.command()
@click.argument("devices", nargs=-1, required=True)
@_folder
@_days
def add(devices: tuple[str, ...], folder: Path, days: int) -> None:
    """Make certificates for new devices, and an enrolment file for each."""
    from distreal_edge.identity import KeyFolder  # noqa: PLC0415

    opened = KeyFolder(folder)
    with opened.held():
        _tell(opened.add(devices, _now(), days))
        _refresh(opened)


@keys.command()
@click.argument("members", nargs=-1)
@click.option(
    "--broker", "hosts", multiple=True, metavar="HOST", help="Where the broker is reached from now on; renews its own."
)
@_folder
@_days
def renew(members: tuple[str, ...], hosts: tuple[str, ...], folder: Path, days: int) -> None:
    """Make new certificates, with new keys, for MEMBERS: devices, `aggregator`, `broker`.

    Without any: for all whose certificates are good for less than half a year, and for the authority, with its old key,
    five years before its end. Old ones stay good until they run out or are revoked. The revocation list is signed again
    when half of its time is over.
    """
    from distreal_edge.identity import KeyFolder  # noqa: PLC0415

    opened = KeyFolder(folder)
    with opened.held():
        made = opened.renew(members, _now(), days, hosts)
        _tell(made)
        if not _refresh(opened) and not made:
            click.echo("nothing runs out within half a year")


@keys.command()
@click.argument("members", nargs=-1, required=True)
@_folder
def revoke(members: tuple[str, ...], folder: Path) -> None:
    """Take back all certificates of MEMBERS, for ever."""
    from distreal_edge.identity import KeyFolder  # noqa: PLC0415
    from distreal_edge.identity.broker import REVOCATIONS  # noqa: PLC0415

    opened = KeyFolder(folder)
    with opened.held():
        count = opened.revoke(members, _now())
    if count == 0:
        click.echo("there was none that was still good")
        return
    click.echo(f"{count} revoked; give the broker {folder / 'broker' / REVOCATIONS} and restart it, then they are out")
    if "broker" in members:
        click.echo("devices have no such list: if the broker's key was stolen, make new keys for all, in a new folder")


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
@_folder
def list_(folder: Path, *, as_json: bool) -> None:
    """Show every certificate, for whom it is, and until when it is good."""
    from distreal_edge.identity import KeyFolder  # noqa: PLC0415

    opened = KeyFolder(folder)
    issued = opened.issued(_now())
    if as_json:
        runs_out = opened.list_runs_out
        told = {
            "authority_until": opened.authority_runs_out.isoformat(),
            "revocation_list_until": None if runs_out is None else runs_out.isoformat(),
            "certificates": [_as_dictionary(each) for each in issued],
        }
        click.echo(json.dumps(told, indent=1))
        return
    click.echo("\n".join(_lines(issued)))
    click.echo(
        f"the revocation list runs out on {_day(opened.list_runs_out)}, the authority on "
        f"{_day(opened.authority_runs_out)}"
    )


def _now() -> datetime:
    return datetime.now(UTC)


def _day(when: datetime | None) -> str:
    return "no day" if when is None else f"{when:%Y-%m-%d}"


def _refresh(opened: KeyFolder) -> bool:
    if not opened.refresh_list(_now()):
        return False
    click.echo(f"the revocation list was signed again; give {opened.path / 'broker' / 'crl.pem'} to the broker")
    return True


def _tell(made: Iterable[Path]) -> None:
    for path in made:
        if path.is_dir():
            click.echo(f"{path}: for the broker, into its /etc/mosquitto/distreal-edge; then restart it")
        else:
            click.echo(f"{path}: for that machine alone, where `distreal-edge enroll {path.name}` installs it")


def _lines(issued: Iterable[Issued]) -> Iterable[str]:
    rows = [("name", "role", "until", "state", "serial")]
    for each in issued:
        state = each.state if each.revoked is None else f"revoked {_day(each.revoked)}"
        rows.append((each.member.name, each.member.role, _day(each.until), state, f"{each.serial:040x}"[:12]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _as_dictionary(each: Issued) -> dict[str, object]:
    return {
        "name": each.member.name,
        "role": each.member.role,
        "identity": each.member.identity,
        "serial": f"{each.serial:040x}",
        "from": each.from_.isoformat(),
        "until": each.until.isoformat(),
        "state": each.state,
        "revoked": None if each.revoked is None else each.revoked.isoformat(),
    }
