from __future__ import annotations

import io
from typing import TYPE_CHECKING, NoReturn

import pytest
from rich.console import Console

from distreal_edge.demo.stage import Stage
from distreal_edge.observe import FederationView, new_view

if TYPE_CHECKING:
    from distreal_edge.demo import Scenario


class ClosedPipe(io.StringIO):
    """Standard output whose reader has gone."""

    def write(self, _text: str) -> NoReturn:
        raise BrokenPipeError(32, "Broken pipe")


class PipedConsole(Console):
    def on_broken_pipe(self) -> None:
        # As rich does, without what it does to the whole process's standard output.
        raise SystemExit(1)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_show_goes_on_when_nobody_reads_any_more(small: Scenario, terminal: bool) -> None:
    console = PipedConsole(file=ClosedPipe(), force_terminal=terminal)
    view = new_view(small.names)
    with Stage(console, small, rows=4) as stage:
        stage.say("something")
        stage.show(view, 0.0)
        stage.show(FederationView(view.devices, phase="finished"), 1.0)


def test_without_a_terminal_lines_are_never_wrapped_or_taken_for_markup(small: Scenario) -> None:
    output = io.StringIO()
    with Stage(Console(file=output, width=20), small, rows=4) as stage:
        stage.say("[bold] a line that is longer than the twenty columns of this console")
    assert output.getvalue() == "[bold] a line that is longer than the twenty columns of this console\n"
