"""`distreal-edge enroll`: give this machine the identity that an enrolment file holds."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from distreal_edge.identity import Enrolment

__all__ = ["enroll"]

_SERVICES: Final = Path("/etc/distreal-edge")
_STATES: Final = {"device": "/var/lib/distreal-edge", "aggregator": "/var/lib/distreal-edge/aggregator"}
_FILES: Final = {"device": "device.toml", "aggregator": "federation.toml"}
_REST: Final = {
    "device": (
        "# The images of this board: say here which. docs/data.md has the forms, docs/configuration.md every key.\n"
        '[data]\nname = "folder"\nroot = "/srv/images"\n'
    ),
    "aggregator": (
        '# What is trained: say here what. docs/configuration.md has every key.\n[network]\nzoo = "resnet20"\n'
    ),
}


@click.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The configuration file it is for; certificate and key go into a folder tls beside it.  "
    "[default: device.toml or federation.toml, here]",
)
@click.option("--replace", is_flag=True, help="Replace the certificate and key that are there.")
def enroll(path: Path, config: Path | None, *, replace: bool) -> None:
    """Install the certificate and key from an enrolment file.

    `distreal-edge keys` has written FILE. When there is no configuration file, one to begin with is written; one that
    is there is left alone, and the lines are shown that it needs.

    Exit codes: 0 installed; 2 the file is damaged, run out, or meant for another.
    """
    from distreal_edge.durable import make_folder, write_durably  # noqa: PLC0415 - --help must be quick
    from distreal_edge.identity import read_enrolment  # noqa: PLC0415

    enrolment = read_enrolment(path, datetime.now(UTC))
    config = Path(_FILES[enrolment.role]) if config is None else config
    document = _read(config)
    if document is not None:
        _check_meant(path, enrolment, config, document)
    folder = config.parent / "tls"
    content = {
        "ca.pem": enrolment.authority,
        f"{enrolment.name}.pem": enrolment.certificate,
        f"{enrolment.name}.key": enrolment.key,
    }
    _check_free(folder, content, enrolment, replace=replace)
    if not folder.exists():
        make_folder(folder)
        folder.chmod(0o700)
    for name, text in content.items():
        write_durably(folder / name, text.encode(), private=True)
    click.echo(f"{enrolment.name} of {enrolment.federation}: certificate and key are in {folder}")
    lines = _broker_lines(enrolment)
    if document is None:
        make_folder(config.parent)
        write_durably(config, _skeleton(enrolment, config, lines).encode())
        click.echo(
            f"{config}: written to begin with; say in it what is yours, then `distreal-edge doctor --config {config}`"
        )
    elif wrong := _wrong_lines(document, lines):
        click.echo(f"{config}: is left alone; below [broker] it must say")
        click.echo("\n".join(f"    {line}" for line in wrong))
    click.echo(f"delete {path} now: it holds the key")


def _read(config: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(config.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{config}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{config}: is no configuration file ({error}); mend it first") from None


def _check_meant(path: Path, enrolment: Enrolment, config: Path, document: dict[str, Any]) -> None:
    """Raise `ConfigError` when the configuration is of another federation, another role or another device."""
    meant = f"{enrolment.name} of {enrolment.federation}"
    if document.get("federation") != enrolment.federation:
        raise ConfigError(
            f"{path}: is for {meant}, but {config} is of the federation {document.get('federation')!r}; "
            "say another --config"
        )
    if (enrolment.role == "device") != ("device" in document):
        raise ConfigError(f"{path}: is for {meant}, but {config} is of another role; say another --config")
    if enrolment.role == "device" and document["device"] != enrolment.name:
        raise ConfigError(
            f"{path}: is for {meant}, but {config} is of the device {document['device']!r}; say another --config"
        )


def _check_free(folder: Path, content: dict[str, str], enrolment: Enrolment, *, replace: bool) -> None:
    for name, text in content.items():
        try:
            there = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{folder / name}: cannot be read: {error.strerror}; run this as its owner") from None
        if there == text.encode():
            continue
        if name == "ca.pem" and _same_key(there, text.encode()):
            continue  # the authority's new certificate, which vouches for all that the old one did
        if name == "ca.pem" and any(other.stem != enrolment.name for other in folder.glob("*.key")):
            raise ConfigError(
                f"{folder / name}: is another authority's, and somebody else's key is beside it; "
                "say a --config in another folder"
            )
        if not replace:
            raise ConfigError(
                f"{folder / name}: is there already, and another one; --replace puts the new one in its place"
            )


def _same_key(one: bytes, other: bytes) -> bool:
    from distreal_edge.identity.checking import read_certificates  # noqa: PLC0415 - --help must be quick

    try:
        return read_certificates(one)[0].public_key() == read_certificates(other)[0].public_key()
    except ValueError:
        return False


def _broker_lines(enrolment: Enrolment) -> dict[str, str | int]:
    return {
        "host": enrolment.host,
        "port": enrolment.port,
        "ca": "tls/ca.pem",
        "certificate": f"tls/{enrolment.name}.pem",
        "key": f"tls/{enrolment.name}.key",
    }


def _toml(key: str, value: str | int) -> str:
    return f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"


def _wrong_lines(document: dict[str, Any], lines: dict[str, str | int]) -> list[str]:
    broker = document.get("broker")
    given = broker if isinstance(broker, dict) else {}
    wrong = [_toml(key, value) for key, value in lines.items() if given.get(key) != value]
    return wrong + ["(and no allow_plaintext)"] * ("allow_plaintext" in given)


def _skeleton(enrolment: Enrolment, config: Path, lines: dict[str, str | int]) -> str:
    state = _STATES[enrolment.role] if config.absolute().parent == _SERVICES else f"{enrolment.role}-state"
    who = f'device = "{enrolment.name}"\n' if enrolment.role == "device" else ""
    broker = "\n".join(_toml(key, value) for key, value in lines.items())
    top = f'federation = "{enrolment.federation}"\n{who}state = "{state}"\n'
    return f"{top}\n[broker]\n{broker}\n\n{_REST[enrolment.role]}"
