"""`distreal-edge version`."""

from __future__ import annotations

import json

import click

__all__ = ["version"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
def version(*, as_json: bool) -> None:
    """Print the version, and the instruction set that the native module chose on this processor."""
    from distreal_edge import __version__  # noqa: PLC0415 - --help must be quick

    found: dict[str, str | None] = {"version": __version__, "native": None, "instruction_set": None}
    try:
        from distreal_edge import _native  # noqa: PLC0415
    except ImportError:
        pass  # in a source tree that is not installed
    else:
        found |= {"native": _native.version(), "instruction_set": _native.instruction_set()}
    if as_json:
        click.echo(json.dumps(found))
    else:
        kernels = f"{found['instruction_set']} kernels" if found["native"] else "no native module here"
        click.echo(f"distreal-edge {found['version']} ({kernels})")
