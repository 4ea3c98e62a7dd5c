"""Where the demo is seen: a live view on a terminal, one line per change elsewhere."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final, Self

from rich.live import Live

from distreal_edge.observe import changes, live_frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from rich.console import Console, RenderableType

    from distreal_edge.demo.scenario import Scenario
    from distreal_edge.observe import FederationView

__all__ = ["Stage"]

_FRAME_S: Final = 0.25


class Stage:
    """A context manager: `show` what is known as often as you like, `say` what should stay.

    `console` decides: an interactive terminal gets frames in place, at most four a second; anything else gets lines.
    When the reader has gone away, the show goes on without one.
    """

    def __init__(self, console: Console, scenario: Scenario, *, rows: int) -> None:
        self._console = console
        self._scenario = scenario
        self._rows = rows
        self._most_cores = scenario.most_cores
        self._began_s: float | None = None
        self._next_frame_s = 0.0
        self._shown: FederationView | None = None
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            with _reader_may_have_gone():
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            with _reader_may_have_gone():
                self._live.stop()

    def say(self, what: RenderableType) -> None:
        """Print above the live view, or as lines."""
        with _reader_may_have_gone():
            self._console.print(what, highlight=False, markup=False, soft_wrap=self._live is None)

    def show(self, view: FederationView, now_s: float, *, force: bool = False) -> None:
        """Show what is known at `now_s`, in Unix seconds; `force` draws a frame even if the last one is very new."""
        if view.round and self._began_s is None:
            self._began_s = now_s
        with _reader_may_have_gone():
            if self._live is None:
                self._print_changes(view, now_s)
            elif force or now_s >= self._next_frame_s:
                self._next_frame_s = now_s + _FRAME_S
                self._live.update(self._frame(view, now_s), refresh=True)

    def _print_changes(self, view: FederationView, now_s: float) -> None:
        since_s = 0 if self._began_s is None else max(0, int(now_s - self._began_s))
        for line in changes(self._shown, view) if self._shown is not None else ():
            stamped = f"{since_s // 60}:{since_s % 60:02d} {line}"
            self._console.print(stamped, highlight=False, markup=False, soft_wrap=True)
        self._shown = view

    def _frame(self, view: FederationView, now_s: float) -> RenderableType:
        return live_frame(
            view,
            training_s=None if self._began_s is None else now_s - self._began_s,
            now_s=now_s,
            rows=self._rows,
            most_cores=self._most_cores,
            target=self._scenario.target_accuracy,
            width=self._console.width,
            unicode=self._console.encoding.startswith("utf"),
        )


@contextlib.contextmanager
def _reader_may_have_gone() -> Iterator[None]:
    try:
        yield
    except (OSError, SystemExit) as error:
        # A closed pipe or terminal; rich turns the first into SystemExit, and later output into nothing. The training
        # and the report go on.
        logging.getLogger(__name__).info("nobody reads the output any more: %r", error)
