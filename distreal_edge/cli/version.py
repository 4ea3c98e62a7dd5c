"""`distreal-edge version`."""

from __future__ import annotations

import json

import click

__all__ = ["version"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
def version(*, as_json: bool) -> None:
    """Print the version, and the instruction set that the native module chose on this processor."""
    from distreal_edge import __version__, _native  # noqa: PLC0415 - --help must be quick

    found = {"version": __version__, "native": _native.version(), "instruction_set": _native.instruction_set()}
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"distreal-edge {found['version']} ({found['instruction_set']} kernels)")
