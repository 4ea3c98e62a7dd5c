"""The command line: `distreal-edge VERB`."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from distreal_edge.errors import DistrealError

__all__ = ["main"]

# Verbs are imported when they are asked for: a device's process must not pay for the demo's pictures.
_VERBS = {
    "aggregate": "distreal_edge.cli.aggregate",
    "bench": "distreal_edge.cli.bench",
    "check-config": "distreal_edge.cli.check_config",
    "demo": "distreal_edge.cli.demo",
    "doctor": "distreal_edge.cli.doctor",
    "enroll": "distreal_edge.cli.enroll",
    "keys": "distreal_edge.cli.keys",
    "profile": "distreal_edge.cli.profile",
    "record": "distreal_edge.cli.record",
    "run": "distreal_edge.cli.run",
    "search": "distreal_edge.cli.search",
    "simulate": "distreal_edge.cli.simulate",
    "status": "distreal_edge.cli.status",
    "version": "distreal_edge.cli.version",
}


class _LazyVerbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _VERBS:
            return None
        command = getattr(import_module(_VERBS[cmd_name]), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyVerbs, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train one convolutional network on several small boards, as much of it as each board can spare.

    Exit codes: 0 done, 1 other failure, 2 wrong usage or configuration, 3 network, 4 data, 5 table, 6 broker,
    7 protocol, 8 state folder, 130 interrupted.
    """


def main() -> None:
    """Run the command line; errors of ours and wrong usage become one line and their exit code."""
    try:
        code = cli.main(prog_name="distreal-edge", standalone_mode=False)
    except DistrealError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        help_wanted.show()
        sys.exit(help_wanted.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (try {context.command_path} --help)" if context is not None else ""
        _fail(error.format_message() + hint, error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    from distreal_edge.cli.logs import say_last  # noqa: PLC0415 - --help must be quick

    say_last(message)
    sys.exit(code)
