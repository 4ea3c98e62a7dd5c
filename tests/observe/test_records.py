from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.errors import StateError
from distreal_edge.observe import read_rounds, read_steps

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "time_s,round,mini_batch,cores,row,share,predicted_s,seconds,loss,images\n"


def test_every_number_of_a_log_of_steps_is_read(training: Path) -> None:
    steps = read_steps(training / "pi-2.csv")
    with (training / "pi-2.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for column in ("time_s", "round", "cores", "row", "share", "seconds", "loss", "images"):
        np.testing.assert_array_equal(getattr(steps, column), [float(line[column]) for line in lines])


def test_rounds_are_read_in_order_and_unknown_keys_left_aside(training: Path) -> None:
    rounds = read_rounds(training / "rounds.jsonl")
    lines = [json.loads(line) for line in (training / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record.round for record in rounds] == [1, 2, 3, 4, 5, 6]
    assert [record.accuracy for record in rounds] == [line["accuracy"] for line in lines]
    assert [list(record.answered) for record in rounds] == [line["answered"] for line in lines]


def test_logs_that_are_not_there_are_empty(tmp_path: Path) -> None:
    assert read_rounds(tmp_path / "rounds.jsonl") == ()
    assert len(read_steps(tmp_path / "steps.csv")) == 0


def test_a_line_that_a_kill_cut_off_is_left_out(training: Path) -> None:
    for name, read in (("rounds.jsonl", read_rounds), ("pi-1.csv", read_steps)):
        whole = len(read(training / name))
        data = (training / name).read_bytes()
        (training / name).write_bytes(data[:-7])
        assert len(read(training / name)) == whole - 1


@pytest.mark.parametrize("line", ["{}", "not json", '{"round": "one"}', "[]"])
def test_a_damaged_record_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(StateError, match=r"rounds\.jsonl:1: not the record of a round"):
        read_rounds(path)


@pytest.mark.parametrize("line", ["1,1,1,x,0,0.5,1,1,1,32", "1,1,1"])
def test_a_step_without_a_number_is_named_by_line_and_column(tmp_path: Path, line: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(HEADER + line + "\n", encoding="utf-8")
    with pytest.raises(StateError, match=r"steps\.csv:2: column '\w+' must be a number"):
        read_steps(path)
