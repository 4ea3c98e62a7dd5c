"""What `distreal-edge demo` prints and how it exits, for each way that a demo can end."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.cli import main
from distreal_edge.demo.folder import claim_folder
from distreal_edge.demo.outcome import sentences, write_report

if TYPE_CHECKING:
    from pathlib import Path

    from distreal_edge.demo import DemoReport, Scenario

ROUND = {
    "round": 1,
    "started_s": 1000.0,
    "closed_s": 1012.0,
    "ceiling": 1.0,
    "selected": ["pi-1", "pi-2"],
    "answered": ["pi-1", "pi-2"],
    "images": 96,
    "mini_batches": 3,
    "accuracy": 0.84,
    "loss": 0.5,
    "evaluated_images": 2000,
}
STEPS = """time_s,round,mini_batch,cores,row,share,predicted_s,seconds,loss,images
1001.0,1,1,4.0,3,1.0,0.1,0.1,2.0,32
1002.0,1,2,1.0,0,0.1,0.1,0.1,1.0,32
"""


@pytest.fixture
def report(tmp_path: Path, small: Scenario) -> DemoReport:
    """Return the report of a demo of one round."""
    folder = tmp_path / "report"
    claim_folder(folder)
    for name in ("aggregator", "pi-1", "pi-2"):
        (folder / "state" / name).mkdir()
    (folder / "state" / "aggregator" / "rounds.jsonl").write_text(json.dumps(ROUND) + "\n", encoding="utf-8")
    for name in ("pi-1", "pi-2"):
        (folder / "state" / name / "steps.csv").write_text(STEPS, encoding="utf-8")
    return write_report(
        folder,
        replace(small, target_accuracy=0.85),
        outcome="finished",
        problem=None,
        final=(0.86, 10_000),
        started_s=990.0,
        ended_s=1020.0,
        table_shares=(0.1, 1.0),
    )


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], report: DemoReport, *options: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("distreal_edge.demo.run_demo", lambda *_: report)
    monkeypatch.setattr(sys, "argv", ["distreal-edge", "demo", *options])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out, captured.err


def test_the_report_says_what_the_final_accuracy_is_and_whether_it_is_enough(report: DemoReport) -> None:
    assert (report.accuracy, report.evaluated_images, report.reached) == (0.86, 10_000, True)
    assert report.wall_s == 30.0
    assert report.versions["numpy"]
    text = " ".join(sentences(report))
    assert "Final accuracy 86.00% on 10,000 test images; the target of 85% was reached." in text
    assert "in 2 of 2 rounds of a device; in 2 of these the row changed too" in text
    assert "Of 2 changes of cores, the rows followed 2, stayed at 0 and went the other way at 0." in text


def test_a_demo_that_reaches_its_target_ends_with_zero(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], report: DemoReport
) -> None:
    assert run(monkeypatch, capsys, report) == (0, "", "")


def test_json_on_standard_output_is_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, report: DemoReport
) -> None:
    code, output, _ = run(monkeypatch, capsys, report, "--json")
    content: dict[str, Any] = json.loads(output)
    assert code == 0
    assert content == json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert content["settings"]["network"]["filters"]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"accuracy": 0.8, "reached": False}, 1, "the accuracy is 80.00%, the target of 85% was missed; logs are in"),
        ({"accuracy": None, "reached": False}, 1, "no accuracy is known"),
        ({"outcome": "failed", "problem": "pi-1 ended too early"}, 1, "distreal-edge: pi-1 ended too early"),
        ({"outcome": "interrupted", "problem": "interrupted by SIGINT"}, 130, "the report so far is in"),
    ],
)
def test_other_ends_say_in_one_line_what_happened(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    report: DemoReport,
    changes: dict[str, Any],
    code: int,
    message: str,
) -> None:
    found, output, error = run(monkeypatch, capsys, replace(report, **changes))
    assert (found, output) == (code, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_trace_that_cannot_be_read_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace.csv").write_text("seconds,cores\n0,many\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["distreal-edge", "demo", "--trace", "trace.csv"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "trace.csv:2: seconds and cores must be numbers, got 'many'" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]
