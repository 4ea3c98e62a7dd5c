from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from matplotlib.figure import Figure

from distreal_edge.observe import draw_accuracy, draw_cores_and_rows

if TYPE_CHECKING:
    from pathlib import Path

    from distreal_edge.observe import RoundRecord, Steps


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect every figure that is saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, path: Path) -> None:
        saved.append(self)
        save(self, path)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_accuracy_is_drawn_at_the_time_each_round_closed(
    tmp_path: Path, rounds: tuple[RoundRecord, ...], figures: list[Figure]
) -> None:
    path = tmp_path / "accuracy.png"
    draw_accuracy(rounds, path, title="A title", target=0.85, final=(0.871, 10_000))
    assert is_png(path)
    (figure,) = figures
    (axes,) = figure.axes
    line = max(axes.lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_allclose(line.get_xdata(), [record.closed_s - rounds[0].started_s for record in rounds])
    np.testing.assert_allclose(line.get_ydata(), [100 * (record.accuracy or 0) for record in rounds])
    texts = [text.get_text() for text in axes.texts]
    assert "target 85%" in texts
    assert "87.10 %\non 10,000 test images" in texts
    assert sum("rows up to" in text for text in texts) == 2  # one for each ceiling
    assert "%" in axes.get_ylabel()
    assert "minutes:seconds" in axes.get_xlabel()


def test_every_device_has_two_strips_on_one_time_axis(
    tmp_path: Path, rounds: tuple[RoundRecord, ...], steps: dict[str, Steps], figures: list[Figure]
) -> None:
    path = tmp_path / "cores.png"
    draw_cores_and_rows(rounds, steps, path, stories={"pi-1": "mostly free"}, title="A title")
    assert is_png(path)
    axes = figures[0].axes
    assert len(axes) == 2 * len(steps)
    assert len({strip.get_xlim() for strip in axes}) == 1
    assert axes[0].get_title(loc="left") == "pi-1 · mostly free"
    for strip in axes:
        verticals = [line for line in strip.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
        assert len(verticals) == len(rounds)


def test_nothing_is_drawn_between_rounds(
    tmp_path: Path, rounds: tuple[RoundRecord, ...], steps: dict[str, Steps], figures: list[Figure]
) -> None:
    draw_cores_and_rows(rounds, steps, tmp_path / "cores.png", stories={}, title="A title")
    began_s = rounds[0].started_s
    rows = figures[0].axes[1]
    for line in rows.lines:
        seconds = np.asarray(line.get_xdata(), np.float64)
        if len(set(seconds)) > 1:
            within = [
                record
                for record in rounds
                if record.started_s - began_s <= seconds.min() and seconds.max() <= record.closed_s - began_s + 1
            ]
            assert len(within) == 1


@pytest.mark.parametrize("closed", [0, 1])
def test_short_trainings_are_drawn_too(
    tmp_path: Path, rounds: tuple[RoundRecord, ...], steps: dict[str, Steps], closed: int
) -> None:
    draw_accuracy(rounds[:closed], tmp_path / "accuracy.png", title="A title")
    draw_cores_and_rows(rounds[:closed], steps, tmp_path / "cores.png", stories={}, title="A title")
    assert is_png(tmp_path / "accuracy.png")
    assert is_png(tmp_path / "cores.png")


def test_rounds_without_an_accuracy_leave_gaps_and_not_zeros(
    tmp_path: Path, training: Path, rounds: tuple[RoundRecord, ...], figures: list[Figure]
) -> None:
    unknown = tuple(
        msgspec.structs.replace(record, accuracy=None) if record.round in {1, 4} else record for record in rounds
    )
    draw_accuracy(unknown, tmp_path / "accuracy.png", title="A title", target=0.85)
    line = max(figures[0].axes[0].lines, key=lambda line: len(line.get_xdata()))
    assert len(line.get_xdata()) == len(rounds) - 2
