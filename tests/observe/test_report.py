"""The report against sums that are taken line by line from the logs."""

from __future__ import annotations

import csv
import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.observe import RoundRecord, Steps, encode_report, summarise
from distreal_edge.observe.adaptation import device_round, rank_correlation

if TYPE_CHECKING:
    from pathlib import Path


def lines_of(training: Path, device: str) -> list[dict[str, float]]:
    with (training / f"{device}.csv").open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in line.items()} for line in csv.DictReader(file)]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def moves_by_hand(lines: list[dict[str, float]]) -> list[int]:
    """Return, for each change of cores, whether rows went the same way (1), the other way (-1) or neither (0)."""
    stretches = [list(part) for _, part in itertools.groupby(lines, key=lambda line: line["cores"])]
    means = [sum(line["row"] for line in part) / len(part) for part in stretches]
    return [
        sign(after[0]["cores"] - before[0]["cores"]) * sign(row_after - row_before)
        for (before, row_before), (after, row_after) in itertools.pairwise(zip(stretches, means, strict=True))
    ]


def make_steps(cores: list[float], rows: list[int]) -> Steps:
    count = len(cores)
    return Steps(
        time_s=np.arange(count, dtype=np.float64),
        round=np.ones(count, np.int64),
        cores=np.array(cores, np.float64),
        row=np.array(rows, np.int64),
        share=np.array(rows, np.float64) / 10,
        seconds=np.ones(count),
        loss=np.ones(count),
        images=np.full(count, 32, np.int64),
    )


def test_each_device_in_each_round_adds_up(
    training: Path, rounds: tuple[RoundRecord, ...], steps: dict[str, Steps]
) -> None:
    for summary in summarise(rounds, steps).rounds:
        for device in summary.devices:
            own = [line for line in lines_of(training, device.device) if line["round"] == summary.round]
            images = sum(line["images"] for line in own)
            assert device.mini_batches == len(own)
            assert device.images == images
            assert device.mean_share == pytest.approx(sum(line["share"] * line["images"] for line in own) / images)
            assert (device.least_cores, device.most_cores) == (
                min(line["cores"] for line in own),
                max(line["cores"] for line in own),
            )
            assert (device.least_row, device.most_row) == (
                min(line["row"] for line in own),
                max(line["row"] for line in own),
            )
            assert device.distinct_rows == len({line["row"] for line in own})
            assert device.distinct_cores == len({line["cores"] for line in own})
            moves = moves_by_hand(own)
            adaptation = device.adaptation
            assert adaptation.core_changes == len(moves)
            assert (adaptation.followed, adaptation.opposed) == (moves.count(1), moves.count(-1))
            assert adaptation.unchanged == moves.count(0)


def test_each_device_over_all_rounds_adds_up(
    training: Path, rounds: tuple[RoundRecord, ...], steps: dict[str, Steps]
) -> None:
    report = summarise(rounds, steps)
    assert [device.device for device in report.devices] == ["pi-1", "pi-2", "pi-3", "pi-4"]
    for device in report.devices:
        own = lines_of(training, device.device)
        seconds = sum(line["seconds"] for line in own)
        assert device.images == sum(line["images"] for line in own)
        assert device.mean_cores == pytest.approx(sum(line["cores"] * line["seconds"] for line in own) / seconds)
        assert device.rounds_answered == (5 if device.device == "pi-4" else 6)


def test_the_evidence_counts_pairs_of_device_and_round(
    training: Path, rounds: tuple[RoundRecord, ...], steps: dict[str, Steps]
) -> None:
    evidence = summarise(rounds, steps).evidence
    pairs = [
        [line for line in lines_of(training, name) if line["round"] == number]
        for name in steps
        for number in range(1, 7)
    ]
    moved = [own for own in pairs if len({line["cores"] for line in own}) > 1]
    assert evidence.device_rounds == 24
    assert evidence.with_core_changes == len(moved)
    assert evidence.with_both_changes == sum(len({line["row"] for line in own}) > 1 for own in moved)
    assert evidence.adaptation.core_changes == sum(len(moves_by_hand(own)) for own in pairs)
    assert not evidence.every_device_answered_every_round
    assert evidence.unanswered == (("pi-4", 5),)


def test_steps_of_a_round_that_was_cut_short_do_not_count(
    rounds: tuple[RoundRecord, ...], steps: dict[str, Steps]
) -> None:
    whole, short = summarise(rounds, steps), summarise(rounds[:4], steps)
    assert short.rounds == whole.rounds[:4]
    assert short.devices[0].images == sum(summary.devices[0].images for summary in whole.rounds[:4])
    assert short.accuracy == rounds[3].accuracy


def test_a_training_that_closed_no_round_has_a_report_too() -> None:
    report = summarise((), {"pi-1": make_steps([1.0], [0])})
    assert report.accuracy is None
    assert not report.evidence.every_device_answered_every_round
    assert json.loads(encode_report(report))["rounds"] == []


def test_a_selected_device_that_trained_nothing_is_reported_as_unanswered(rounds: tuple[RoundRecord, ...]) -> None:
    report = summarise(rounds[4:5], {"pi-4": make_steps([], [])})
    (device,) = report.rounds[0].devices
    assert (device.mini_batches, device.mean_share, device.least_cores, device.correlation) == (0, None, None, None)
    assert report.evidence.unanswered == (("pi-4", 5),)


def test_the_report_is_json_that_says_the_same(rounds: tuple[RoundRecord, ...], steps: dict[str, Steps]) -> None:
    report = summarise(rounds, steps)
    content: dict[str, Any] = json.loads(encode_report(report))
    assert content["accuracy"] == report.accuracy
    assert content["rounds"][2]["devices"][1]["distinct_rows"] == report.rounds[2].devices[1].distinct_rows
    assert content["evidence"]["adaptation"]["followed"] == report.evidence.adaptation.followed


def test_rows_that_follow_oppose_or_stay_are_told_apart() -> None:
    adaptation = device_round("a", make_steps([1, 1, 4, 4, 2, 3], [0, 0, 5, 5, 6, 6]), answered=True).adaptation
    assert (adaptation.core_changes, adaptation.followed, adaptation.opposed, adaptation.unchanged) == (3, 1, 1, 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=30))
def test_the_rank_correlation_is_that_of_pairwise_comparisons(pairs: list[tuple[int, int]]) -> None:
    first, second = ([float(pair[side]) for pair in pairs] for side in (0, 1))

    def ranks(values: list[float]) -> list[float]:
        return [sum((other < value) + 0.5 * (other == value) for other in values) for value in values]

    def covariance(a: list[float], b: list[float]) -> float:
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))

    found = rank_correlation(np.array(first), np.array(second))
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert found is None
    else:
        a, b = ranks(first), ranks(second)
        assert found == pytest.approx(covariance(a, b) / math.sqrt(covariance(a, a) * covariance(b, b)))
