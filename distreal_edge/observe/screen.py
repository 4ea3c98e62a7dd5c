"""Draw what is known about a federation on a terminal of any width, in colour or without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.box import ASCII, ROUNDED
from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distreal_edge.observe.view import seconds_left, share_done
from distreal_edge.words import round_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from distreal_edge.observe.report import RoundSummary, TrainingReport
    from distreal_edge.observe.view import DeviceView, FederationView

__all__ = ["live_frame", "result_table"]

WIDE: Final = 112
_STATE_STYLES: Final = {"training": "green", "uploading": "cyan", "degraded": "yellow", "offline": "red"}
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_BAR_CELLS: Final = 10


def live_frame(
    view: FederationView,
    *,
    training_s: float | None,
    now_s: float,
    rows: int,
    most_cores: float,
    target: float,
    width: int,
    unicode: bool = True,
) -> RenderableType:
    """Return one frame of the live view: the devices, the accuracy by round, and how far the training is.

    `training_s` is how long ago the first round began, None before it did; `rows` how many rows the table has;
    `most_cores` what a full bar stands for; `target` the accuracy to reach. Without `unicode` only ASCII is drawn.
    """
    return Group(
        _device_table(view, rows=rows, most_cores=most_cores, width=width, unicode=unicode),
        _accuracy_lines(view, target=target, width=width, unicode=unicode),
        _progress(view, training_s=training_s, now_s=now_s, width=width, unicode=unicode),
    )


def result_table(report: TrainingReport, *, unicode: bool = True) -> RenderableType:
    """Return the table at the end: one line per closed round."""
    table = Table(box=ROUNDED if unicode else ASCII, header_style="bold")
    for heading in ("round", "accuracy", "images", "mean share", "ceiling", "cores", "rows", "answered"):
        table.add_column(heading, justify="right", no_wrap=True)
    dash = "\N{EN DASH}" if unicode else "-"
    for summary in report.rounds:
        table.add_row(*_result_cells(summary, dash))
    return table


def _result_cells(summary: RoundSummary, dash: str) -> tuple[str, ...]:
    rows = [row for device in summary.devices for row in (device.least_row, device.most_row) if row is not None]
    return (
        str(summary.round),
        dash if summary.accuracy is None else f"{summary.accuracy:.2%}",
        f"{summary.images:,}",
        dash if summary.mean_share is None else f"{summary.mean_share:.0%}",
        f"{summary.ceiling:.0%}",
        dash
        if summary.least_cores is None or summary.most_cores is None
        else f"{summary.least_cores:g}{dash}{summary.most_cores:g}",
        f"{min(rows)}{dash}{max(rows)}" if rows else dash,
        f"{len(summary.answered)}/{len(summary.selected)}",
    )


def _device_table(view: FederationView, *, rows: int, most_cores: float, width: int, unicode: bool) -> Table:
    wide = width >= WIDE
    table = Table(box=ROUNDED if unicode else ASCII, header_style="bold")
    table.add_column("device", no_wrap=True, max_width=16)
    # Widths for what comes later, so that the table does not jump.
    table.add_column("state", no_wrap=True, min_width=9)
    for heading, least in (
        ("free cores" if wide else "cores", 15 if wide else 5),
        ("row", 2 * len(str(rows - 1)) + 4),
        ("network", 15 if wide else 7),
        ("images/s", 8),
        ("mini-batches" if wide else "batches", 7),
        ("loss", 6),
    ):
        table.add_column(heading, justify="right", no_wrap=True, min_width=least)
    for device in view.devices:
        table.add_row(*_device_cells(device, rows=rows, most_cores=most_cores, wide=wide, unicode=unicode))
    return table


def _device_cells(
    device: DeviceView, *, rows: int, most_cores: float, wide: bool, unicode: bool
) -> tuple[str | Text, ...]:
    dash = "\N{EN DASH}" if unicode else "-"
    cores = dash if device.cores is None else f"{device.cores:.1f}"
    share = dash if device.share is None else f"{device.share:4.0%}"
    if wide:
        cores = f"{_bar((device.cores or 0.0) / most_cores, unicode=unicode)} {cores:>4}"
        share = f"{_bar(device.share or 0.0, unicode=unicode)} {share:>4}"
    return (
        device.name,
        Text(device.state, style=_STATE_STYLES.get(device.state, "")),
        cores,
        # Rows are counted from 0 in the logs and in the report, so they are here.
        dash if device.row is None else f"{device.row} of {rows - 1}",
        share,
        dash if device.images_per_s is None else f"{device.images_per_s:,.0f}",
        dash if device.mini_batches is None else f"{device.mini_batches:,}",
        dash if device.loss is None else f"{device.loss:.3f}",
    )


def _bar(share: float, *, unicode: bool) -> str:
    full = round(min(max(share, 0.0), 1.0) * _BAR_CELLS)
    return ("█" * full + "░" * (_BAR_CELLS - full)) if unicode else ("#" * full + "." * (_BAR_CELLS - full))


def _accuracy_lines(view: FederationView, *, target: float, width: int, unicode: bool) -> Text:
    if not view.accuracies:
        return Text("accuracy by round: none yet", style="dim")
    last, accuracy = view.accuracies[-1]
    line = Text("accuracy ")
    if unicode:
        room = max(width - 60, 8)
        line.append(_spark([value for _, value in view.accuracies[-room:]]) + " ", style="blue")
    line.append(f"{accuracy:.2%}", style="bold green" if accuracy >= target else "bold")
    line.append(f" after round {last}, target {target:.0%}")
    shown = max((width - 2) // 12, 1)
    recent = "  ".join(f"{number:>2}: {value:.2%}" for number, value in view.accuracies[-shown:])
    line.append(f"\n{recent}", style="dim")
    return line


def _spark(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    spread = high - low or 1.0
    return "".join(_BLOCKS[1 + round((value - low) / spread * (len(_BLOCKS) - 2))] for value in values)


def _progress(
    view: FederationView, *, training_s: float | None, now_s: float, width: int, unicode: bool
) -> RenderableType:
    done = share_done(view, now_s)
    if view.phase == "finished":
        words = f"all rounds done: {view.rounds}"
    elif not view.round:
        words = "waiting for the devices" if view.phase == "waiting" else "starting the aggregator and the devices"
    else:
        ceiling = f", rows up to {view.ceiling:.0%}" if view.ceiling is not None else ""
        words = f"{round_of(view.round, view.rounds)}{ceiling}, {view.phase}, {view.answered} answered"
        left_s = seconds_left(view, training_s or 0.0, now_s)
        if left_s is not None:
            minutes, seconds = divmod(max(round(left_s), 0), 60)
            words += f", about {minutes}:{seconds:02d} left"
    if unicode:
        bar: RenderableType = ProgressBar(total=1.0, completed=done, width=min(width, 76))
    else:
        cells = min(width, 76) - 2
        bar = Text("[" + ("#" * round(done * cells)).ljust(cells) + "]", no_wrap=True)
    return Group(Text(words), bar)
