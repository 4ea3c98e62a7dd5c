"""Pictures of a simulation: accuracy over time and rounds, and the rows that ours used. Needs matplotlib."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from distreal_edge.observe.pictures import BLUE, STYLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from distreal_edge.simulate.records import RoundRecord
    from distreal_edge.simulate.results import Results, Run

__all__ = ["draw_accuracy_over_rounds", "draw_accuracy_over_time", "draw_rows"]

OURS: Final = "ours"
_OTHERS: Final = ("#D55E00", "#009E73", "#CC79A7", "#8C6D1F", "#5B5BA5", "#555555")
"""Okabe and Ito's, darkened where they were too light for words."""
_DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_GAP: Final = 0.048
"""Of the axes' height, between two labels."""


def draw_accuracy_over_time(results: Results, path: Path) -> None:
    """Draw the accuracy of every strategy over virtual time into a PNG: mean and range over seeds, ours on top."""
    last_s = max((run.virtual_s for run in results.runs), default=0.0)
    unit_s, unit = next(((each_s, name) for each_s, name in _UNITS if last_s >= 2 * each_s), _UNITS[-1])
    _draw_accuracy(results, path, lambda record: record.closed_s / unit_s, f"virtual time ({unit})")


def draw_accuracy_over_rounds(results: Results, path: Path) -> None:
    """Draw the accuracy of every strategy over rounds into a PNG: mean and range over seeds, ours on top."""
    _draw_accuracy(results, path, lambda record: record.round, "round")


def draw_rows(results: Results, path: Path) -> None:
    """Draw, over virtual time, which rows ours trained, as shares of its mini-batches, narrow rows first, into a PNG.

    All seeds together; colours say a row's share of the full network's multiply-accumulates.
    """
    runs = [run for run in results.runs if run.strategy == OURS and run.rounds]
    with _figure((9.5, 4.6)) as figure:
        axes = figure.add_subplot()
        shares = np.array(runs[0].row_shares)
        used = _rows_of(runs)  # round, row
        times = np.array([record.opened_s for record in runs[0].rounds] + [runs[0].rounds[-1].closed_s])
        unit_s, unit = next(((each_s, name) for each_s, name in _UNITS if times[-1] >= 2 * each_s), _UNITS[-1])
        import matplotlib as mpl  # noqa: PLC0415 - an extra

        colours = mpl.colormaps["viridis"]
        lower = np.zeros(len(used))
        for row, share in enumerate(shares):
            upper = lower + used[:, row]
            axes.fill_between(
                times / unit_s,
                *(100 * np.append(each, each[-1]) for each in (lower, upper)),
                step="post",
                color=colours(share),
                linewidth=0,
            )
            lower = upper
        axes.set_xlim(times[0] / unit_s, times[-1] / unit_s)
        axes.set_ylim(0, 100)
        axes.set_xlabel(f"virtual time ({unit})")
        axes.set_ylabel("share of the mini-batches (%)")
        bar = figure.colorbar(mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 100), colours), ax=axes, pad=0.02)
        bar.set_label("row, % of the network's multiply-accumulates")
        axes.set_title(f"{results.scenario.name}: the rows that {runs[0].strategy} trained")
        figure.savefig(path)


_UNITS: Final = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def _rows_of(runs: Sequence[Run]) -> NDArray[np.float64]:
    """Return the share of the mini-batches that each row had in each round: [round, row]."""
    used = np.zeros((len(runs[0].rounds), len(runs[0].row_shares)))
    for run in runs:
        for number, record in enumerate(run.rounds[: len(used)]):
            for row, times in record.rows.items():
                used[number, row] += times
    shares: NDArray[np.float64] = used / np.maximum(used.sum(axis=1, keepdims=True), 1.0)
    return shares


def _draw_accuracy(results: Results, path: Path, where: Callable[[RoundRecord], float], label: str) -> None:
    names = [strategy.name for strategy in results.strategies]
    others = [name for name in names if name != OURS]
    ends: list[tuple[float, float, str, str]] = []
    with _figure((10.5, 6.2)) as figure:
        axes = figure.add_subplot()
        for name in [*others, *(name for name in names if name == OURS)]:
            curve = _curve([run for run in results.runs if run.strategy == name], where)
            if curve is None:
                continue
            x, mean, low, high = curve
            number = others.index(name) if name in others else 0
            ours = name == OURS
            colour = BLUE if ours else _OTHERS[number % len(_OTHERS)]
            axes.plot(
                x,
                mean,
                color=colour,
                linewidth=3.0 if ours else 1.3,
                linestyle="-" if ours else _DASHES[number // len(_OTHERS) % len(_DASHES)],
                alpha=1.0 if ours else 0.85,
                marker="o" if len(x) == 1 else None,
                zorder=5 if ours else 3,
            )
            if np.any(high > low):
                axes.fill_between(x, low, high, color=colour, alpha=0.2 if ours else 0.08, linewidth=0)
            ends.append((float(x[-1]), float(mean[-1]), name, colour))
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        images = results.scenario.data.test_images
        axes.set_ylabel(f"accuracy on {images:,} test images (%)")
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
        seeds = max((strategy.seeds for strategy in results.strategies), default=1)
        spread = f" (mean and range of {seeds} seeds)" if seeds > 1 else ""
        axes.set_title(f"{results.scenario.name}{spread}")
        _label_ends(axes, ends)
        figure.savefig(path)


def _curve(
    runs: Sequence[Run], where: Callable[[RoundRecord], float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Return place, mean, lowest and highest accuracy in percent of the rounds that all seeds have a score of."""
    scored = [
        {
            record.round: record
            for record in run.rounds
            if record.score is not None and record.score.accuracy is not None
        }
        for run in runs
    ]
    common = sorted(set.intersection(*(set(each) for each in scored)))
    if not common:
        return None
    places = np.array([np.mean([where(each[number]) for each in scored]) for number in common])
    percent = np.array([[100 * _accuracy(each[number]) for each in scored] for number in common])  # round, seed
    return places, percent.mean(axis=1), percent.min(axis=1), percent.max(axis=1)


def _accuracy(record: RoundRecord) -> float:
    assert record.score is not None
    assert record.score.accuracy is not None
    return record.score.accuracy


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name and last value beside the axes, as near to its end as the others leave room."""
    if not ends:
        return
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: end[1])
    wanted = [(value - low) / (high - low) for _, value, _, _ in ordered]
    for (x, value, name, colour), place in zip(ordered, _spread(wanted), strict=True):
        axes.annotate(
            f"{name}  {value:.1f}",
            (x, value),
            xytext=(1.03, place),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=11 if name == OURS else 9,
            fontweight="bold" if name == OURS else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def _spread(wanted: Sequence[float]) -> list[float]:
    """Return places at least a gap apart, in the same order, each group of neighbours about its mean."""
    groups: list[list[float]] = []
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _lowest(groups[-1]) - _highest(groups[-2]) < _GAP:
            last = groups.pop()
            groups[-1] += last
    return [_lowest(group) + number * _GAP for group in groups for number in range(len(group))]


def _lowest(group: Sequence[float]) -> float:
    # Within the axes as far as there is room.
    half = (len(group) - 1) * _GAP / 2
    return max(0.0, min(sum(group) / len(group) - half, 1.0 - 2 * half))


def _highest(group: Sequence[float]) -> float:
    return _lowest(group) + (len(group) - 1) * _GAP


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[Any]:
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(STYLE):
        yield Figure(figsize=size, layout="constrained")
