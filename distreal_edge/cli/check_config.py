"""`distreal-edge check-config`: read a configuration file and say what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import click

from distreal_edge.config import DeviceConfig, FederationConfig, load_config

__all__ = ["check_config"]


@click.command("check-config")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--role", type=click.Choice(["device", "federation"]), required=True, help="Whose file it is.")
def check_config(path: Path, role: str) -> None:
    """Check a configuration file without starting anything."""
    load_config(path, DeviceConfig if role == "device" else FederationConfig)
    click.echo(f"{path}: a sound {role} configuration")
