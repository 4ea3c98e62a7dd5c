"""`distreal-edge check-config`: read a configuration file and say what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from distreal_edge.errors import DataError

__all__ = ["check_config"]

_ROLES: Final = ("device", "federation")


@click.command("check-config")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--role", type=click.Choice(_ROLES), help="Whose file it is, when its keys do not tell.")
def check_config(path: Path, role: str | None) -> None:
    """Check a configuration file, and the files it names, without starting anything or reading datasets.

    Exit codes: 0 it is sound; 2 to 5 as everywhere, with one line that says what is wrong and where.
    """
    from distreal_edge.cli.aggregate import prepare  # noqa: PLC0415 - --help must be quick
    from distreal_edge.cli.run import load_profile, load_trace  # noqa: PLC0415
    from distreal_edge.cli.service import broker_arguments  # noqa: PLC0415
    from distreal_edge.config import DeviceConfig, FederationConfig, find_role, load_config, named_by  # noqa: PLC0415

    roles: dict[str, type[DeviceConfig | FederationConfig]] = {"device": DeviceConfig, "federation": FederationConfig}
    config = load_config(path, find_role(path) if role is None else roles[role])
    broker_arguments(config.broker)
    if isinstance(config, FederationConfig):
        prepare(path, config)
        with named_by(path, "evaluation", "root"):
            _check_root(config.evaluation.root)
    else:
        load_trace(path, config.resources)
        load_profile(path, config.resources)
        with named_by(path, "data", "root"):
            _check_root(config.data.root)
    whose = "the federation" if isinstance(config, FederationConfig) else "a device"
    click.echo(f"{path}: a sound configuration of {whose}")


def _check_root(root: str | None) -> None:
    if root is None:
        return
    try:
        Path(root).expanduser().stat()
    except (FileNotFoundError, NotADirectoryError):
        message = f"there is neither a file nor a folder {root}; docs/data.md says how to get images"
        raise DataError(message) from None
    except OSError as error:
        message = f"{root} cannot be looked for: {error.strerror}; check as the user who runs the program"
        raise DataError(message) from None
