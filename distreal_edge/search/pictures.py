"""Three pictures of a search: its front against uniform rates, the rates of its rows, how it grew. Needs matplotlib."""

from __future__ import annotations

from contextlib import contextmanager
from math import log2
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distreal_edge.search.evidence import Evidence

__all__ = ["draw_front", "draw_hypervolume", "draw_rates"]

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREY: Final = "#777777"
_STYLE: Final[Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.dpi": 130,
}


def draw_front(evidence: Evidence, path: Path, *, title: str) -> None:
    """Draw the confirmed scores over cost into a PNG: the table's rows, uniform rates, and what was left out.

    Bars are standard errors over snapshots and seeds.
    """
    with _axes((9, 5.2)) as (figure, axes):
        kinds = (
            ("confirmed, left out", GREY, "x", lambda one: one.row is None and not one.uniform),
            ("uniform rates", ORANGE, "s", lambda one: one.uniform),
            ("the table's rows", BLUE, "o", lambda one: one.row is not None),
        )
        for label, colour, marker, belongs in kinds:
            chosen = [one for one in evidence.confirmed if belongs(one)]
            if not chosen:
                continue
            # What differs between snapshots and seeds but not between vectors is no error of a vector.
            errors = [_standard_error(one.falls, evidence) for one in chosen]
            axes.errorbar(
                [one.cost for one in chosen],
                [one.score for one in chosen],
                yerr=errors,
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=0 if marker == "x" else 1.4,
                elinewidth=0.8,
                label=label,
            )
        axes.axhline(0.0, color=GREY, linewidth=0.8, linestyle=(0, (5, 3)))
        _cost_axis(axes, evidence)
        steps = evidence.settings.confirmation.steps
        axes.set_ylabel(f"full network's loss is lower by (nats)\nafter {steps} mini-batches")
        axes.legend(frameon=False)
        axes.set_title(title)
        figure.savefig(path)


def draw_rates(evidence: Evidence, path: Path, *, title: str) -> None:
    """Draw what share of each filter group the table's rows keep, one column a row, into a PNG."""
    rows = sorted((one for one in evidence.confirmed if one.row is not None), key=lambda one: one.cost)
    shares = np.array([np.divide(one.counts, evidence.sizes) for one in rows]).T  # group, row
    with _axes((max(6.0, 2.5 + 0.3 * len(rows)), max(3.2, 1.4 + 0.22 * len(evidence.groups)))) as (figure, axes):
        picture = axes.imshow(shares, aspect="auto", vmin=0.0, vmax=1.0, cmap="cividis")
        axes.set_yticks(range(len(evidence.groups)), evidence.groups, fontsize=7)
        axes.set_xticks(range(len(rows)), [f"{100 * one.cost:.3g}" for one in rows], rotation=90, fontsize=7)
        axes.set_xlabel(f"rows, by their share of the full network's {_unit(evidence)} (%)")
        figure.colorbar(picture, label="share of filters that is kept")
        axes.set_title(title)
        figure.savefig(path)


def draw_hypervolume(evidence: Evidence, path: Path, *, title: str) -> None:
    """Draw how the hypervolume of the screening grew with every vector into a PNG, from the last that was given on.

    Lines say what uniform rates alone reach, and all the vectors that the search began with.
    """
    reached = [one.hypervolume for one in evidence.screened]
    given = [number for number, one in enumerate(evidence.screened, start=1) if one.origin != "NSGA-II"]
    begun = min(max(given, default=1), len(reached))
    with _axes((9, 4.2)) as (figure, axes):
        numbers = range(begun, len(reached) + 1)
        axes.step(
            numbers,
            reached[begun - 1 :],
            where="post",
            color=BLUE,
            linewidth=1.8,
            marker="o" if len(numbers) == 1 else "",  # a line of one point is not seen
            label="all vectors so far",
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.axhline(
            evidence.hypervolumes["screened at the start"],
            color=GREY,
            linestyle=(0, (5, 3)),
            linewidth=1.2,
            label="what the search began with",
        )
        axes.axhline(
            evidence.hypervolumes["screened uniform"],
            color=ORANGE,
            linestyle=(0, (5, 3)),
            linewidth=1.2,
            label="uniform rates",
        )
        axes.set_xlabel("vectors that were screened")
        axes.set_ylabel("hypervolume (nats beyond guessing,\nmean over budgets)")
        axes.legend(frameon=False)
        axes.set_title(title)
        figure.savefig(path)


def _standard_error(falls: tuple[float, ...], evidence: Evidence) -> float:
    every = np.array([one.falls for one in evidence.confirmed])
    common = every.mean(axis=0) - every.mean()
    own = np.asarray(falls) - common
    return float(own.std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else 0.0


def _cost_axis(axes: Any, evidence: Evidence) -> None:
    axes.set_xscale("log", base=2)
    least = min(one.cost for one in evidence.confirmed)
    ticks = [2.0**-number for number in range(int(-log2(least)), -1, -1)]
    axes.set_xticks(ticks, [f"1/{round(1 / tick)}" if tick < 1 else "1" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"share of the full network's {_unit(evidence)}")


def _unit(evidence: Evidence) -> str:
    return "seconds" if evidence.settings.cost == "seconds" else "multiply-accumulates"


@contextmanager
def _axes(size: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.add_subplot()
