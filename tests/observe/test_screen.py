from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from distreal_edge.observe import DeviceView, FederationView, live_frame, new_view, result_table, summarise

if TYPE_CHECKING:
    from rich.console import RenderableType

    from distreal_edge.observe import RoundRecord, Steps

VIEW = FederationView(
    devices=(
        DeviceView("pi-1", "training", 4.0, 7, 1.0, 1234.5, 1204, 0.4123, 15_000),
        DeviceView("pi-2", "uploading", 3.5, 3, 0.18, 88.0, 97, 12.3456, 15_000),
        DeviceView("pi-3", "idle", 1.0, None, None, None, 0, None, 15_000),
        DeviceView("pi-4"),
    ),
    phase="collecting",
    round=7,
    rounds=12,
    ceiling=1.0,
    round_began_s=1000.0,
    deadline_s=1015.0,
    answered=1,
    accuracies=tuple((number, 0.6 + 0.04 * number) for number in range(1, 7)),
)


def drawn(what: RenderableType, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get().splitlines()


def frame(view: FederationView, width: int, *, unicode: bool = True, rows: int = 8) -> list[str]:
    what = live_frame(
        view,
        training_s=95.0,
        now_s=1005.0,
        rows=rows,
        most_cores=4.0,
        target=0.85,
        width=width,
        unicode=unicode,
    )
    return drawn(what, width)


@pytest.mark.parametrize("width", [80, 100, 112, 160])
def test_a_frame_shows_every_figure_whole_at_any_width(width: int) -> None:
    lines = frame(VIEW, width)
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    assert "…" not in text
    for figure in ("pi-1", "training", "uploading", "7 of 7", "100%", "18%", "1,234", "1,204", "0.412", "12.346"):
        assert figure in text
    assert "84.00% after round 6, target 85%" in text
    assert "round 7 of 12, rows up to 100%, collecting, 1 answered, about 1:25 left" in text


@pytest.mark.parametrize("width", [80, 100, 112, 160])
def test_a_table_of_many_rows_needs_no_more_space(width: int) -> None:
    devices = tuple(replace(device, row=63 if device.row == 7 else device.row) for device in VIEW.devices)
    many, few = frame(replace(VIEW, devices=devices), width, rows=64), frame(VIEW, width)
    text = "\n".join(many)
    assert len(many) == len(few)
    assert all(len(line) <= width for line in many)
    assert "…" not in text
    for figure in ("63 of 63", " 3 of 63", "1,234", "12.346"):
        assert figure in text


def test_a_frame_fits_an_ordinary_terminal_in_height() -> None:
    assert len(frame(VIEW, 80)) <= 20


def test_wide_terminals_get_bars() -> None:
    assert "██████████  4.0" in "\n".join(frame(VIEW, 140))
    assert "█████" not in "\n".join(frame(VIEW, 80)[:10])


def test_without_unicode_only_ascii_is_drawn() -> None:
    for width in (80, 140):
        assert "\n".join(frame(VIEW, width, unicode=False)).isascii()


def test_before_anything_was_heard_the_frame_says_so() -> None:
    text = "\n".join(frame(new_view(["pi-1", "pi-2"]), 80))
    assert "awaited" in text
    assert "accuracy by round: none yet" in text
    assert "starting the aggregator and the devices" in text


def test_the_time_left_is_said_in_minutes_and_seconds() -> None:
    # 6 of 12 rounds and two thirds of the seventh are over after 95 s.
    done = (6 + 5 / 15) / 12
    left = round(95 * (1 - done) / done)
    assert f"about {left // 60}:{left % 60:02d} left" in "\n".join(frame(VIEW, 160))


def test_the_end_is_said_too() -> None:
    assert "all rounds done: 12" in "\n".join(frame(replace(VIEW, phase="finished"), 80))


def test_the_table_at_the_end_has_a_line_per_round(rounds: tuple[RoundRecord, ...], steps: dict[str, Steps]) -> None:
    report = summarise(rounds, steps)
    lines = drawn(result_table(report), 80)
    assert all(len(line) <= 80 for line in lines)
    body = [line for line in lines if "%" in line]
    assert len(body) == len(rounds)
    fifth = body[4]
    assert f"{rounds[4].accuracy:.2%}" in fifth
    assert f"{rounds[4].images:,}" in fifth
    assert "3/4" in fifth
    assert "\n".join(drawn(result_table(report, unicode=False), 80)).isascii()
