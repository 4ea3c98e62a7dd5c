"""Two pictures of a training: accuracy over time, and what devices did when their cores changed. Needs matplotlib."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from distreal_edge.observe.records import RoundRecord, Steps

__all__ = ["draw_accuracy", "draw_cores_and_rows"]

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; each series also has its own panel.
BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREEN: Final = "#009E73"
GREY: Final = "#666666"
PALE: Final = "#F0F0F0"
STYLE: Final[Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#222222",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "figure.dpi": 130,
}


def draw_accuracy(
    rounds: Sequence[RoundRecord],
    path: Path,
    *,
    title: str,
    target: float | None = None,
    final: tuple[float, int] | None = None,
) -> None:
    """Draw the accuracy after every round over time, into a PNG.

    Shaded bands show which rounds have one ceiling; the numbers along the top are the rounds. `final` is the accuracy
    that was measured once more after the last round, and on how many images.
    """
    with _figure(figsize=(9.5, 5.2)) as figure:
        axes = figure.add_subplot()
        began_s = rounds[0].started_s if rounds else 0.0
        known = [record for record in rounds if record.accuracy is not None]
        seconds = [record.closed_s - began_s for record in known]
        percent = [100 * (record.accuracy or 0.0) for record in known]
        marks = [*percent, *([] if target is None else [100 * target])]
        axes.set_ylim(
            _round_to_tens(min(marks, default=0.0) - 6), max(min(_round_to_tens(max(marks, default=94) + 13), 100), 10)
        )
        _time_axis(axes, rounds)
        _mark_ceilings(axes, rounds, began_s)
        if target is not None:
            axes.axhline(100 * target, color=ORANGE, linestyle=(0, (5, 3)), linewidth=1.3)
            axes.annotate(
                f"target {target:.0%}",
                (1.0, 100 * target),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                xytext=(-4, -4),
                color=ORANGE,
                va="top",
                ha="right",
            )
        axes.plot(seconds, percent, color=BLUE, linewidth=2, marker="o", markersize=6, zorder=3)
        if known:
            value = percent[-1] if final is None else 100 * final[0]
            if final is not None:
                axes.plot(seconds[-1], value, color=BLUE, marker="D", markersize=8, markeredgecolor="white", zorder=4)
            axes.annotate(
                f"{value:.2f} %" + (f"\non {final[1]:,} test images" if final is not None else ""),
                # Above the end of the line, wherever it runs: its last third is as wide as the words.
                (seconds[-1], max(value, *percent[-(len(percent) // 3 + 1) :])),
                textcoords="offset points",
                xytext=(5, 9),
                ha="right",
                color=BLUE,
                fontweight="bold",
            )
        _number_rounds(axes, rounds, began_s)
        evaluated = {record.evaluated_images for record in known}
        images = f"{max(evaluated):,} test images" if evaluated else "test images"
        axes.set_ylabel(f"accuracy on {images} (%)")
        axes.set_title(title, pad=26)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        figure.savefig(path)


def draw_cores_and_rows(
    rounds: Sequence[RoundRecord], steps: Mapping[str, Steps], path: Path, *, stories: Mapping[str, str], title: str
) -> None:
    """Draw free cores and the trained share of the network into a PNG: two strips per device, one time axis.

    The upper strip of a device shows its free cores at each mini-batch, the lower one the row that it chose, as the
    share of the full network's MACs; vertical lines are round boundaries, the dashed line is the round's ceiling.
    `stories` says in words how each device's cores change.
    """
    names = sorted(steps)
    with _figure(figsize=(12, 1.3 + 1.85 * max(len(names), 1))) as figure:
        # A thin empty strip after each device keeps its two strips visibly together.
        heights = [1.0, 1.25, 0.5] * len(names)
        grid = figure.add_gridspec(max(len(heights) - 1, 1), 1, height_ratios=heights[:-1] or [1.0])
        began_s = rounds[0].started_s if rounds else 0.0
        most_cores = max((float(own.cores.max()) for own in steps.values() if len(own)), default=1.0)
        upper = lower = None
        for number, name in enumerate(names):
            upper = figure.add_subplot(grid[3 * number], sharex=upper)
            lower = figure.add_subplot(grid[3 * number + 1], sharex=upper)
            parts = [steps[name].of_round(record.round) for record in rounds]
            _cores_strip(upper, parts, began_s, most_cores)
            _rows_strip(lower, parts, rounds, began_s)
            story = f" · {stories[name]}" if name in stories else ""
            upper.set_title(f"{name}{story}", fontsize=10, pad=18 if number == 0 else 3)
            for axes in (upper, lower):
                for record in rounds:
                    axes.axvline(record.started_s - began_s, color="#AAAAAA", linewidth=0.8, zorder=0)
                axes.tick_params(labelbottom=number == len(names) - 1 and axes is lower, length=3)
            if number == 0:
                _number_rounds(upper, rounds, began_s)
        if lower is not None:
            _time_axis(lower, rounds)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
        figure.supxlabel(
            "Blue: free cores at each mini-batch. Orange: the chosen row, as a share of the full network's"
            " multiply-accumulates; dashed: the most that the round allows.",
            x=0.01,
            ha="left",
            fontsize=9,
            color=GREY,
        )
        figure.savefig(path)


class _figure:  # noqa: N801 - used as a function
    """A figure in this module's style, drawn without a display and closed at the end."""

    def __init__(self, *, figsize: tuple[float, float]) -> None:
        self._figsize = figsize

    def __enter__(self) -> Any:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import
        from matplotlib.figure import Figure  # noqa: PLC0415

        self._style = mpl.rc_context(STYLE)
        self._style.__enter__()
        # Figure and not pyplot: no global state, no display, nothing to close.
        return Figure(figsize=self._figsize, layout="constrained")

    def __exit__(self, *error: object) -> None:
        self._style.__exit__(None, None, None)


def _time_axis(axes: Any, rounds: Sequence[RoundRecord]) -> None:
    length_s = rounds[-1].closed_s - rounds[0].started_s if rounds else 60.0
    axes.set_xlim(0, length_s * 1.01)
    step_s = next((step for step in (1, 5, 10, 30, 60, 300, 600, 1800) if length_s / step <= 12), 3600)
    ticks = np.arange(0, length_s + 1e-6, step_s)
    axes.set_xticks(ticks, [f"{int(tick) // 60}:{int(tick) % 60:02d}" for tick in ticks])
    axes.set_xlabel("time since the first round was announced (minutes:seconds)")


def _number_rounds(axes: Any, rounds: Sequence[RoundRecord], began_s: float) -> None:
    if not rounds:
        return
    top = axes.secondary_xaxis("top")
    middles = [(record.started_s + record.closed_s) / 2 - began_s for record in rounds]
    labels = [
        f"round {record.round}" if number == 0 and len(rounds) <= 15 else str(record.round)
        for number, record in enumerate(rounds)
    ]
    # Of very many rounds only some are numbered.
    every = -(-len(rounds) // 30)
    top.set_xticks(middles[::every], labels[::every])
    top.tick_params(length=0, pad=1, colors=GREY, labelsize=9)
    top.spines["top"].set_visible(False)


def _cores_strip(axes: Any, parts: Sequence[Steps], began_s: float, most_cores: float) -> None:
    # A line of its own for each round: between rounds nothing is trained, so nothing is known and nothing drawn.
    for part in parts:
        seconds, cores = _held(part, part.cores, began_s)
        axes.fill_between(seconds, cores, step="post", color=BLUE, alpha=0.25, linewidth=0)
        axes.step(seconds, cores, where="post", color=BLUE, linewidth=1.3)
    axes.set_ylim(0, most_cores * 1.12)
    axes.set_yticks(range(0, int(most_cores) + 1, 2 if most_cores >= 3 else 1))
    axes.set_ylabel("free\ncores", color=BLUE)


def _rows_strip(axes: Any, parts: Sequence[Steps], rounds: Sequence[RoundRecord], began_s: float) -> None:
    for record, part in zip(rounds, parts, strict=True):
        seconds, share = _held(part, part.share, began_s)
        axes.step(seconds, 100 * share, where="post", color=ORANGE, linewidth=1.2)
        axes.hlines(
            100 * record.ceiling,
            record.started_s - began_s,
            record.closed_s - began_s,
            color=GREY,
            linestyle=(0, (4, 3)),
            linewidth=1.0,
        )
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel("row, % of\nnetwork", color=ORANGE)


def _held(part: Steps, values: NDArray[np.float64], began_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return times and values with the last value held until its mini-batch ended."""
    if not len(part):
        return part.time_s, values
    ends_s = part.time_s[-1] + part.seconds[-1]
    return np.append(part.time_s, ends_s) - began_s, np.append(values, values[-1])


def _mark_ceilings(axes: Any, rounds: Sequence[RoundRecord], began_s: float) -> None:
    """Shade every other stretch of rounds with one ceiling, and name each ceiling."""
    starts = [
        number for number, record in enumerate(rounds) if not number or record.ceiling != rounds[number - 1].ceiling
    ]
    for order, (first, after) in enumerate(itertools.pairwise([*starts, len(rounds)])):
        left = rounds[first].started_s - began_s
        right = (rounds[after].started_s if after < len(rounds) else rounds[-1].closed_s) - began_s
        if order % 2 == 0:
            axes.axvspan(left, right, color=PALE, zorder=0)
        axes.annotate(
            f"rows up to\n{rounds[first].ceiling:.0%} of the network",
            ((left + right) / 2, 0.03),
            xycoords=("data", "axes fraction"),
            ha="center",
            color=GREY,
            fontsize=9,
        )


def _round_to_tens(percent: float) -> float:
    return float(np.floor(max(percent, 0.0) / 10.0) * 10.0)
