from __future__ import annotations

import errno
import json
import math
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.dropout import MAXIMUM_TABLE_BYTES, Row, Table
from distreal_edge.errors import ConfigError, TableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = Any


def _document() -> Json:
    return {
        "schema": 1,
        "network": "ab" * 32,
        "sizes": [16, 32],
        "draw": "ordered",
        "data": "any",
        "origin": "uniform",
        "batch": 32,
        "rows": [
            {"vector": [0.5, 0.75], "macs": 1000, "peak_bytes": 10000, "score": 0.1},
            {"vector": [0.25, 0.0], "macs": 5000, "peak_bytes": 30000, "score": 0.5},
            {"vector": [0.0, 0.0], "macs": 10000, "peak_bytes": 20000, "score": 1},
        ],
    }


def _table() -> Table:
    return Table.from_bytes(json.dumps(_document()).encode())


def test_a_table_is_read_as_it_is_written(tmp_path: Path) -> None:
    table = _table()
    assert table.rows[1] == Row((0.25, 0.0), 5000, 30000, 0.5)
    table.save(tmp_path / "table.json")
    assert Table.load(tmp_path / "table.json") == table
    assert Table.from_bytes(table.to_bytes()) == table
    assert json.loads(table.to_bytes()) == _document()
    assert table.to_bytes().count(b"\n") > 10  # people read it too


WRONG: dict[str, tuple[Callable[[Json], Any], str]] = {
    "another schema": (lambda d: d.update(schema=2), "schema version 2 is not known; this program reads version 1"),
    "no schema": (lambda d: d.pop("schema"), "missing required field `schema`"),
    "a schema of text": (lambda d: d.update(schema="1"), "Expected `int`, got `str` - at `$.schema`"),
    "an unknown field": (lambda d: d.update(author="me"), "unknown field `author`"),
    "a long unknown field": (lambda d: d.update({"x" * 10**6: 1}), "unknown field `xxx"),
    "no network": (lambda d: d.pop("network"), "missing required field `network`"),
    "a short digest": (lambda d: d.update(network="ab"), "matching regex"),
    "a digest in capitals": (lambda d: d.update(network="AB" * 32), "matching regex"),
    "a digest with a line feed": (lambda d: d.update(network="ab" * 32 + "\n"), "matching regex"),
    "a group without filters": (lambda d: d.update(sizes=[16, 0]), "Expected `int` >= 1 - at `$.sizes["),
    "a group too large": (lambda d: d.update(sizes=[16, 65537]), "Expected `int` <= 65536"),
    "too many groups": (lambda d: d.update(sizes=[1] * 4097), "length <= 4096"),
    "an unknown policy": (lambda d: d.update(draw="best"), "unknown draw policy 'best'; choose one of ordered, "),
    "a long text": (lambda d: d.update(data="x" * 201), "length <= 200"),
    "no batch": (lambda d: d.update(batch=0), "Expected `int` >= 1"),
    "a batch too large": (lambda d: d.update(batch=65537), "Expected `int` <= 65536"),
    "no rows": (lambda d: d.update(rows=[]), "length >= 1"),
    "too many rows": (lambda d: d.update(rows=d["rows"] * 86), "length <= 256"),
    "a row of text": (lambda d: d.update(rows=["full"]), "Expected `object`, got `str`"),
    "an unknown field in a row": (lambda d: d["rows"][0].update(name="cheap"), "unknown field `name`"),
    "no vector": (lambda d: d["rows"][0].pop("vector"), "missing required field `vector`"),
    "a rate of one": (lambda d: d["rows"][0].update(vector=[0.5, 1.0]), "Expected `float` < 1.0"),
    "a negative rate": (lambda d: d["rows"][0].update(vector=[-0.5, 0.0]), "Expected `float` >= 0.0"),
    "a short vector": (lambda d: d["rows"][1].update(vector=[0.5]), "row 1: a dropout vector is a sequence of rates"),
    "a long vector": (lambda d: d["rows"][2].update(vector=[0.0] * 3), "got 3 rates for 2 filter groups"),
    "no MACs": (lambda d: d["rows"][0].update(macs=0), "Expected `int` >= 1"),
    "MACs with a fraction": (lambda d: d["rows"][0].update(macs=0.5), "Expected `int`"),
    "MACs that no double holds": (lambda d: d["rows"][2].update(macs=2**53 + 1), "Expected `int` <= 9007199254740992"),
    "negative memory": (lambda d: d["rows"][0].update(peak_bytes=-1), "Expected `int` >= 0"),
    "a score of nothing": (lambda d: d["rows"][0].update(score=None), "Expected `float`, got `null`"),
    "rows out of order": (lambda d: d["rows"].reverse(), "row 1 costs 5000 MACs, not more than row 0; sort the rows"),
    "rows of the same cost": (lambda d: d["rows"][1].update(macs=1000), "row 1 costs 1000 MACs, not more than row 0"),
    "a dearer row that is no better": (lambda d: d["rows"][1].update(score=0.1), "row 1 scores 0.1, not more than"),
    "no full network": (lambda d: d["rows"].pop(), "the last row must be the full network: every rate 0"),
}


@pytest.mark.parametrize("way", WRONG)
def test_a_table_that_is_wrong_is_refused_with_the_reason(way: str) -> None:
    change, complaint = WRONG[way]
    document = _document()
    change(document)
    with pytest.raises(TableError) as caught:
        Table.from_bytes(json.dumps(document).encode(), "some.json")
    message = str(caught.value)
    assert message.startswith("some.json: not a table of dropout vectors: ")
    assert complaint in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{", b'{"schema": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"schema":' * 100_000]
)
def test_bytes_that_are_no_table_are_refused(data: bytes) -> None:
    with pytest.raises(TableError, match="table: not a table of dropout vectors: "):
        Table.from_bytes(data)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999"])
def test_a_score_is_a_finite_number(literal: str) -> None:
    text = json.dumps(_document()).replace('"score": 0.5', f'"score": {literal}')
    with pytest.raises(TableError):
        Table.from_bytes(text.encode())
    with pytest.raises(TableError, match="row 0 scores inf; a score is a finite number"):
        Table(1, "ab" * 32, (), "ordered", "any", "test", 32, (Row((), 1, 1, float("inf")),))


def test_a_table_made_by_hand_is_checked_as_one_from_a_file() -> None:
    full = Row((0.0,), 10, 10, 1.0)
    with pytest.raises(TableError, match="unknown draw policy 'best'"):
        Table(1, "ab" * 32, (4,), "best", "any", "test", 32, (full,))
    with pytest.raises(TableError, match=r"row 0: .* rate 0 is 2"):
        Table(1, "ab" * 32, (4,), "ordered", "any", "test", 32, (Row((2.0,), 5, 5, 0.5), full))


def test_a_table_too_large_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(bytes(MAXIMUM_TABLE_BYTES + 1))
    with pytest.raises(TableError, match="more than the 16777216 bytes that a table may have"):
        Table.load(path)


def test_a_table_that_cannot_be_read_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nothing\.json: cannot read the table: No such file"):
        Table.load(tmp_path / "nothing.json")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nowhere/table\.json: cannot be written: No such file"):
        _table().save(tmp_path / "nowhere" / "table.json")


def test_a_table_that_cannot_be_written_whole_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    path.write_text("the one before")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("os.fsync", lambda _file: (_ for _ in ()).throw(full))
    with pytest.raises(TableError, match="No space left on device"):
        _table().save(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the one before"]


def test_a_table_knows_the_network_it_belongs_to() -> None:
    table = _table()
    table.check_network("ab" * 32, [16, 32])
    for digest, sizes in (("cd" * 32, (16, 32)), ("ab" * 32, (32, 16))):
        with pytest.raises(TableError, match="the table belongs to the network abababababab, not to "):
            table.check_network(digest, sizes)


@pytest.mark.parametrize(
    ("ceiling", "rows"), [(0.0, 1), (0.05, 1), (0.1, 1), (0.499, 1), (0.5, 2), (0.999, 2), (1.0, 3), (2.0, 3)]
)
def test_a_ceiling_lets_through_rows_up_to_its_share_and_always_the_cheapest(ceiling: float, rows: int) -> None:
    table = _table()
    assert table.under(ceiling) == table.rows[:rows]


macs = st.lists(st.integers(1, 2**53), min_size=1, max_size=8, unique=True).map(sorted)


def _of_macs(costs: list[int], memory: list[int]) -> Table:
    last = len(costs) - 1
    rows = tuple(
        Row((0.5 if number < last else 0.0,), cost, peak, float(number))
        for number, (cost, peak) in enumerate(zip(costs, memory, strict=False))
    )
    return Table(1, "0" * 64, (4,), "ordered", "any", "test", 32, rows)


@settings(deadline=None)
@given(costs=macs, data=st.data())
def test_a_rows_own_share_as_a_ceiling_lets_that_row_through(costs: list[int], data: st.DataObject) -> None:
    table = _of_macs(costs, costs)
    row = data.draw(st.sampled_from(table.rows))
    assert row in table.under(row.macs / table.rows[-1].macs)


@settings(deadline=None)
@given(
    costs=st.lists(st.integers(1, 10**6), min_size=1, max_size=8, unique=True).map(sorted),
    memory=st.lists(st.integers(0, 100), min_size=8, max_size=8),
    seconds=st.floats(0, 100),
    threads=st.floats(0.1, 4),
    limit=st.none() | st.integers(0, 100),
    ceiling=st.floats(0, 1),
    batch=st.none() | st.integers(1, 64),
)
def test_the_best_row_is_the_best_of_those_that_fit(
    costs: list[int],
    memory: list[int],
    seconds: float,
    threads: float,
    limit: int | None,
    ceiling: float,
    batch: int | None,
) -> None:
    table = _of_macs(costs, memory)
    best = table.rows[0]  # the cheapest, when nothing fits
    for row in table.rows:
        in_time = row.macs * (batch or 32) * 1e-6 <= seconds * threads
        in_memory = limit is None or row.peak_bytes <= limit
        under = row is table.rows[0] or row.macs <= ceiling * costs[-1] * (1.0 + 1e-9)
        if in_time and in_memory and under and row.score > best.score:
            best = row
    chosen = table.best(
        seconds=seconds, seconds_per_mac=1e-6, threads=threads, memory_bytes=limit, ceiling=ceiling, batch=batch
    )
    assert chosen is best


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"batch": -3}, *({"seconds_per_mac": speed} for speed in (-1.0, 0.0, math.nan))]
)
def test_no_row_is_best_for_a_step_that_cannot_be(wrong: Any) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value}: "):
        _table().best(**{"seconds": 1.0, "seconds_per_mac": 1e-10, **wrong})


def test_the_best_row_in_figures() -> None:
    table = _table()
    cheap, middle, full = table.rows
    # A mini-batch of 32 takes .032, .16 and .32 seconds at a microsecond per MAC.
    assert table.best(seconds=0.32, seconds_per_mac=1e-6) is full
    assert table.best(seconds=0.31, seconds_per_mac=1e-6) is middle
    assert table.best(seconds=0.16, seconds_per_mac=1e-6, threads=2.0) is full
    assert table.best(seconds=0.01, seconds_per_mac=1e-6) is cheap
    assert table.best(seconds=1.0, seconds_per_mac=1e-6, memory_bytes=25000) is full
    assert table.best(seconds=1.0, seconds_per_mac=1e-6, memory_bytes=20000) is full
    assert table.best(seconds=1.0, seconds_per_mac=1e-6, memory_bytes=19999) is cheap
    assert table.best(seconds=1.0, seconds_per_mac=1e-6, ceiling=0.5) is middle
    assert table.best(seconds=0.1, seconds_per_mac=1e-6, batch=8) is full
