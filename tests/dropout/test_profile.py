from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distreal_edge as de
from distreal_edge.dropout import (
    MAXIMUM_PROFILE_BYTES,
    PROFILE_SCHEMA_VERSION,
    Profile,
    ProfiledMachine,
    ProfiledRow,
    ProfiledStep,
    Row,
    Table,
    profile_path,
)
from distreal_edge.errors import ConfigError, TableError

if TYPE_CHECKING:
    from collections.abc import Callable

Json = Any
MACHINE = ProfiledMachine("board", 4, None, None, None, 0.1, 0.0)
TABLE = Table(
    1,
    "ab" * 32,
    (16, 32),
    "ordered",
    "any",
    "uniform",
    32,
    (
        Row((0.5, 0.75), 1000, 10000, 0.1),
        Row((0.25, 0.0), 5000, 30000, 0.5),
        Row((0.0, 0.0), 10000, 20000, 1.0),
    ),
)


def step(median_s: float, peak_bytes: int = 1) -> ProfiledStep:
    return ProfiledStep(median_s, median_s / 2.0, 0.1, 9, peak_bytes)


def profile_of(table: Table, threads: tuple[int, ...], steps: list[list[ProfiledStep]], batch: int = 32) -> Profile:
    return Profile(
        schema=1,
        network=table.network,
        table=table.digest,
        draw=table.draw,
        batch=batch,
        instruction_set="plain",
        machine=MACHINE,
        disturbed=(),
        threads=threads,
        rows=tuple(ProfiledRow(row.vector, row.macs, tuple(of)) for row, of in zip(table.rows, steps, strict=True)),
    )


# What two threads gain: much on the widest row, nothing on the cheapest.
PROFILE = profile_of(
    TABLE,
    (1, 2, 4),
    [
        [step(0.1, 100), step(0.1, 110), step(0.12, 130)],
        [step(0.4, 300), step(0.25, 310), step(0.2, 330)],
        [step(0.8, 200), step(0.4, 210), step(0.2, 230)],
    ],
)


def _document() -> Json:
    return json.loads(PROFILE.to_bytes())


def _saved(folder: Path) -> Path:
    path = folder / "table.json"
    TABLE.save(path)
    PROFILE.save(profile_path(path))
    return path


def test_a_profile_is_read_as_it_is_written(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == PROFILE
    assert Profile.from_bytes(PROFILE.to_bytes()) == PROFILE
    assert PROFILE.to_bytes().count(b"\n") > 10  # people read it too


def test_a_profile_lies_beside_its_table() -> None:
    assert profile_path("some/table.json") == Path("some/table.profile.json")
    assert profile_path("garden.v2.json") == Path("garden.v2.profile.json")
    assert profile_path("table") == Path("table.profile.json")


def _step(document: Json) -> Json:
    return document["rows"][1]["steps"][2]


WRONG: dict[str, tuple[Callable[[Json], Any], str]] = {
    "another schema": (lambda d: d.update(schema=2), "schema version 2 is not known; this program reads version 1"),
    "no schema": (lambda d: d.pop("schema"), "missing required field `schema`"),
    "an unknown field": (lambda d: d.update(board="pi"), "unknown field `board`"),
    "an unknown field of the machine": (lambda d: d["machine"].update(fan=True), "unknown field `fan`"),
    "an unknown field in a row": (lambda d: d["rows"][0].update(score=1), "unknown field `score`"),
    "an unknown field in a step": (lambda d: _step(d).update(mean_s=1), "unknown field `mean_s`"),
    "a table without a digest": (lambda d: d.update(table="ab"), "matching regex"),
    "a network without a digest": (lambda d: d.update(network="AB" * 32), "matching regex"),
    "an unknown policy": (lambda d: d.update(draw="best"), "unknown draw policy 'best'"),
    "no images": (lambda d: d.update(batch=0), "Expected `int` >= 1"),
    "too many images": (lambda d: d.update(batch=65537), "Expected `int` <= 65536"),
    "a long text": (lambda d: d.update(instruction_set="x" * 201), "length <= 200"),
    "a machine without cores": (lambda d: d["machine"].update(cores=0), "Expected `int` >= 1"),
    "a machine colder than anything": (lambda d: d["machine"].update(temperature_after_c=-300), "`float` >= -273.15"),
    "a load below nothing": (lambda d: d["machine"].update(load=-1), "`float` >= 0.0"),
    "too much that disturbed": (lambda d: d.update(disturbed=[""] * 17), "length <= 16"),
    "no threads": (lambda d: d.update(threads=[]), "length >= 1"),
    "no thread": (lambda d: d.update(threads=[0, 1, 2]), "Expected `int` >= 1"),
    "too many threads": (lambda d: d.update(threads=[1, 2, 257]), "Expected `int` <= 256"),
    "threads that fall": (lambda d: d.update(threads=[1, 4, 2]), "the thread counts [1, 4, 2] do not rise"),
    "the same threads twice": (lambda d: d.update(threads=[1, 2, 2]), "the thread counts [1, 2, 2] do not rise"),
    "a step too few": (lambda d: d["rows"][1]["steps"].pop(), "row 1 has 2 steps for 3 thread counts"),
    "a row without steps": (lambda d: d["rows"][1].update(steps=[]), "length >= 1"),
    "no rows": (lambda d: d.update(rows=[]), "length >= 1"),
    "too many rows": (lambda d: d.update(rows=d["rows"] * 86), "length <= 256"),
    "no MACs": (lambda d: d["rows"][0].update(macs=0), "Expected `int` >= 1"),
    "a rate of one": (lambda d: d["rows"][0].update(vector=[1.0]), "Expected `float` < 1.0"),
    "a step that takes no time": (lambda d: _step(d).update(median_s=0.0), "Expected `float` > 0.0"),
    "a step that takes days": (lambda d: _step(d).update(median_s=1e5), "Expected `float` <= 86400.0"),
    "a minimum above the median": (lambda d: _step(d).update(minimum_s=9.0), "row 1 took 9.0 s at least and 0.2 s in"),
    "a negative spread": (lambda d: _step(d).update(spread=-0.1), "Expected `float` >= 0.0"),
    "no repeats": (lambda d: _step(d).update(repeats=0), "Expected `int` >= 1"),
    "negative memory": (lambda d: _step(d).update(peak_bytes=-1), "Expected `int` >= 0"),
}


@pytest.mark.parametrize("way", WRONG)
def test_a_profile_that_is_wrong_is_refused_with_the_reason(way: str) -> None:
    change, complaint = WRONG[way]
    document = _document()
    change(document)
    with pytest.raises(TableError) as caught:
        Profile.from_bytes(json.dumps(document).encode(), "some.json")
    message = str(caught.value)
    assert message.startswith("some.json: not a profile of a table: ")
    assert complaint in message
    assert len(message) < 500


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'{"schema": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_bytes_that_are_no_profile_are_refused(data: bytes) -> None:
    with pytest.raises(TableError, match="profile: not a profile of a table: "):
        Profile.from_bytes(data)


@pytest.mark.parametrize("median_s", [math.nan, math.inf, -1.0])
def test_a_profile_made_by_hand_holds_times_only(median_s: float) -> None:
    wrong = [[ProfiledStep(median_s, 0.1, 0.0, 5, 1)] for _ in TABLE.rows]
    with pytest.raises(TableError, match="row 0 took"):
        profile_of(TABLE, (1,), wrong)


def test_a_profile_too_large_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(bytes(MAXIMUM_PROFILE_BYTES + 1))
    with pytest.raises(TableError, match="more than the 33554432 bytes that a profile may have"):
        Profile.load(path)


def test_places_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nothing\.json: cannot read the profile: No such file"):
        Profile.load(tmp_path / "nothing.json")
    with pytest.raises(TableError, match=r"nowhere/profile\.json: cannot be written: No such file"):
        PROFILE.save(tmp_path / "nowhere" / "profile.json")


def test_a_table_is_loaded_with_the_profile_beside_it(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    assert Table.load(path).profile == PROFILE
    assert Table.load(path, profiled=False) == TABLE
    profile_path(path).unlink()
    assert Table.load(path) == TABLE


def test_a_profile_never_goes_into_the_tables_bytes(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    bare = path.read_bytes()
    table = Table.load(path)
    assert table.to_bytes() == bare
    assert table.digest == TABLE.digest == hashlib.sha256(bare).hexdigest()
    table.save(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == bare


@pytest.mark.parametrize("value", [None, {}, _document()])
def test_a_profile_does_not_arrive_inside_a_table(value: Json) -> None:
    document = json.loads(TABLE.to_bytes()) | {"profile": value}
    with pytest.raises(TableError, match="unknown field `profile`"):
        Table.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(table="00" * 32), "the profile belongs to the table 000000000000, not to "),
        (lambda d: d.update(network="00" * 32), "the profile belongs to the table "),
        (lambda d: d.update(draw="random"), "the profile belongs to the table "),
        (lambda d: d["rows"].pop(), "the profile belongs to the table "),
        (lambda d: d["rows"][0].update(macs=1001), "the profile belongs to the table "),
        (lambda d: d["rows"][0].update(vector=[0.5, 0.5]), "the profile belongs to the table "),
        (lambda d: d.update(schema=7), "not a profile of a table: schema version 7 is not known"),
    ],
)
def test_a_profile_of_another_table_says_to_measure_again(
    tmp_path: Path, change: Callable[[Json], Any], complaint: str
) -> None:
    path = _saved(tmp_path)
    document = _document()
    change(document)
    profile_path(path).write_text(json.dumps(document))
    with pytest.raises(TableError) as caught:
        Table.load(path)
    message = str(caught.value)
    assert message.startswith(str(profile_path(path)))
    assert complaint in message
    assert message.endswith("; run `distreal-edge profile` again, or remove the file")
    assert Table.load(path, profiled=False) == TABLE


def test_a_table_that_changed_has_lost_its_profile(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    msgspec.structs.replace(TABLE, origin="searched").save(path)
    with pytest.raises(TableError, match="the profile belongs to the table"):
        Table.load(path)


def test_the_public_face_chooses_by_what_was_measured(tmp_path: Path) -> None:
    _saved(tmp_path)
    table = de.Table.load(tmp_path / "table.json")
    row = table.best(seconds=0.4, threads=2, memory_bytes=200e6)
    assert row == TABLE.rows[2]
    assert table.best(seconds=0.39, threads=2) == TABLE.rows[1]
    assert table.best(seconds=0.4, threads=2, memory_bytes=209) == TABLE.rows[0]
    assert table.best(seconds=0.4, threads=1) == TABLE.rows[1]
    assert table.best(seconds=0.4) == TABLE.rows[1]
    assert table.best(seconds=0.4, threads=2, ceiling=0.5) == TABLE.rows[1]
    assert table.best(seconds=0.2, threads=2, batch=16) == TABLE.rows[2]
    assert table.best(seconds=0.2, threads=2, batch=17) == TABLE.rows[1]
    assert table.best(seconds=0.01, threads=4) == TABLE.rows[0]


def test_seconds_per_mac_count_more_than_the_profile(tmp_path: Path) -> None:
    table = Table.load(_saved(tmp_path))
    assert table.best(seconds=0.16, seconds_per_mac=1e-6) == TABLE.rows[1]
    assert table.best(seconds=0.16, seconds_per_mac=1e-6, memory_bytes=29999) == TABLE.rows[0]


def test_nobody_chooses_without_any_measurement() -> None:
    with pytest.raises(ConfigError, match=r"run `distreal-edge profile` .* or give seconds_per_mac"):
        TABLE.best(seconds=1.0)


def test_seconds_at_thread_counts_that_were_not_measured() -> None:
    profile = profile_of(TABLE, (2, 4), [[step(0.4), step(0.2)]] * 3)
    assert profile.seconds(0, 2, 32) == 0.4
    assert profile.seconds(0, 4, 32) == 0.2
    assert profile.seconds(0, 3, 32) == pytest.approx(1.0 / 3.75)  # between 2.5 and 5 steps a second
    assert profile.seconds(0, 1, 32) == 0.8  # a thread alone, without any loss to win back
    assert profile.seconds(0, 0.5, 32) == 1.6
    assert profile.seconds(0, 9, 32) == 0.2
    assert profile.seconds(0, 2, 8) == 0.1
    assert profile.seconds(0, 0.0, 32) == math.inf
    assert profile.seconds(0, math.nan, 32) == math.inf


def test_memory_is_predicted_on_the_safe_side() -> None:
    assert [PROFILE.peak_bytes(1, threads, 32) for threads in (0.5, 1, 1.5, 2, 3, 4, 9)] == [
        300, 300, 310, 310, 330, 330, 330
    ]  # fmt: skip
    assert [PROFILE.peak_bytes(1, 1, images) for images in (1, 32, 33, 64, 65)] == [300, 300, 600, 600, 900]


times = st.floats(1e-3, 10.0)


@st.composite
def profiled_tables(draw: st.DrawFn) -> Table:
    macs = draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=6, unique=True).map(sorted))
    rows = tuple(
        Row((0.5 if number < len(macs) - 1 else 0.0,), cost, 1, float(number)) for number, cost in enumerate(macs)
    )
    table = Table(1, "0" * 64, (4,), "ordered", "any", "test", draw(st.sampled_from([8, 32])), rows)
    threads = tuple(draw(st.lists(st.integers(1, 8), min_size=1, max_size=4, unique=True).map(sorted)))
    steps = [[step(draw(times), draw(st.integers(0, 100))) for _ in threads] for _ in rows]
    profile = profile_of(table, threads, steps, draw(st.sampled_from([8, 32])))
    return msgspec.structs.replace(table, profile=profile)


@settings(deadline=None)
@given(
    table=profiled_tables(),
    seconds=st.floats(0.0, 10.0),
    threads=st.integers(1, 8),
    limit=st.none() | st.integers(0, 100),
    ceiling=st.floats(0.0, 1.0),
    batch=st.none() | st.integers(1, 8),
)
def test_the_best_row_is_the_best_of_those_that_were_measured_to_fit(
    table: Table, seconds: float, threads: int, limit: int | None, ceiling: float, batch: int | None
) -> None:
    profile = table.profile
    assert profile is not None
    if threads not in profile.threads:
        threads = profile.threads[threads % len(profile.threads)]
    at = profile.threads.index(threads)
    images = batch or table.batch
    best = table.rows[0]  # the cheapest, when nothing fits
    for row, measured in zip(table.rows, profile.rows, strict=True):
        it = measured.steps[at]
        in_time = it.median_s * images / profile.batch <= seconds
        in_memory = limit is None or it.peak_bytes * max(1, -(-images // profile.batch)) <= limit
        under = row.macs <= ceiling * table.rows[-1].macs * (1.0 + 1e-9)
        if in_time and in_memory and under and row.score > best.score:
            best = row
    assert table.best(seconds=seconds, threads=threads, memory_bytes=limit, ceiling=ceiling, batch=batch) is best


@settings(deadline=None)
@given(table=profiled_tables(), threads=st.floats(0.01, 10.0))
def test_a_prediction_lies_between_its_neighbours_and_below_none_of_them_outside(table: Table, threads: float) -> None:
    profile = table.profile
    assert profile is not None
    measured = [one.median_s for one in profile.rows[0].steps]
    predicted = profile.seconds(0, threads, profile.batch)
    around = [
        measured[number]
        for number, count in enumerate(profile.threads)
        if count
        in {max((c for c in profile.threads if c <= threads), default=None)}
        | {min((c for c in profile.threads if c >= threads), default=None)}
    ]
    assert predicted >= min(around) * (1.0 - 1e-9)
    if threads >= profile.threads[0]:
        assert predicted <= max(around) * (1.0 + 1e-9)
    else:
        assert predicted * threads == pytest.approx(measured[0] * profile.threads[0])


PAGE = (Path(__file__).parents[2] / "docs" / "profile.md").read_text()


def test_the_pages_profile_is_a_profile_and_every_field_is_explained() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    profile = Profile.from_bytes(text.encode())
    assert profile.schema == PROFILE_SCHEMA_VERSION
    document = json.loads(text)
    row = document["rows"][0]
    for field in (*document, *document["machine"], *row, *row["steps"][0]):
        assert f"| `{field}` |" in PAGE
    assert f"at most {MAXIMUM_PROFILE_BYTES // 2**20} MiB" in PAGE
