"""`docs/aggregator.md` against the code."""

from __future__ import annotations

import re
from pathlib import Path

from distreal_edge.aggregator import REASONS, Record
from distreal_edge.aggregator.rounds import RETURN_S

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "aggregator.md").read_text()


def test_every_reason_for_a_refusal_is_explained() -> None:
    chapter = TEXT.partition("## What is refused")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `([a-z]+)` \| (.+) \|$", chapter, re.MULTILINE)) == REASONS


def test_every_field_of_a_record_is_explained() -> None:
    line = TEXT.partition("A line of `rounds.jsonl`:")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", line)) == set(Record.__struct_fields__)


def test_the_time_to_come_back_is_the_one_that_is_told() -> None:
    assert f"at least {RETURN_S:g} seconds" in " ".join(TEXT.split())
