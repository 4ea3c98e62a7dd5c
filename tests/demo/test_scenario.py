from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.config import DeviceConfig, FederationConfig, TableChoice, build_table, load_config
from distreal_edge.data import shard_indices
from distreal_edge.demo import default_scenario
from distreal_edge.demo.folder import claim_folder
from distreal_edge.demo.scenario import write_files
from distreal_edge.demo.toml import to_toml
from distreal_edge.device import Trace
from distreal_edge.dropout import DRAW_POLICIES
from distreal_edge.search import shipped_table, shipped_tables

if TYPE_CHECKING:
    from distreal_edge.demo import Scenario


class Inner(msgspec.Struct, frozen=True):
    text: str = ""
    numbers: tuple[float, ...] = ()


class Outer(msgspec.Struct, frozen=True):
    whole: int
    flag: bool
    absent: int | None
    inner: Inner
    several: tuple[Inner, ...]


@given(
    st.builds(
        Outer,
        whole=st.integers(-(2**53), 2**53),
        flag=st.booleans(),
        absent=st.none() | st.integers(0, 5),
        inner=st.builds(
            Inner,
            text=st.text(st.characters(codec="utf-8")),
            numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        ),
        several=st.lists(st.builds(Inner, text=st.text("a#[]='\"\\\n\x7f\x00 ")), min_size=1, max_size=3).map(tuple),
    )
)
def test_toml_gives_back_what_was_written(content: Outer) -> None:
    text = to_toml(content, "A comment\nof two lines.")
    import tomllib  # noqa: PLC0415

    parsed = tomllib.loads(text)
    assert ("absent" in parsed) == (content.absent is not None)
    assert msgspec.convert({"absent": None, **parsed}, Outer) == content


def test_the_files_of_the_demo_are_sound_configurations(tmp_path: Path, small: Scenario) -> None:
    folder = tmp_path / "report"
    claim_folder(folder)
    commands = write_files(small, folder, host="127.0.0.1", port=4321)
    assert list(commands) == ["aggregator", "pi-1", "pi-2"]
    federation = load_config(commands["aggregator"][-1], FederationConfig)
    assert federation.broker.port == 4321
    assert federation.training == small.training
    assert federation.ceiling == small.ceiling
    devices = [load_config(commands[name][-1], DeviceConfig) for name in small.names]
    assert [device.device for device in devices] == ["pi-1", "pi-2"]
    assert len({device.state for device in devices} | {federation.state}) == 3
    assert all(device.log_steps for device in devices)
    for device in devices:
        assert device.resources.trace is not None
        assert Path(device.resources.trace).exists()


def test_boards_take_turns_with_recorded_traces(tmp_path: Path) -> None:
    first, second = Trace((0.0, 5.0), (16.0, 0.0), (1e9, 2e9), (50.0, None)), Trace((0.0,), (0.5,))
    scenario = default_scenario(devices=3, recorded=(("office.csv", first), ("shed.csv", second)))
    folder = tmp_path / "report"
    claim_folder(folder)
    commands = write_files(scenario, folder, host="127.0.0.1", port=4321)
    followed = [load_config(commands[name][-1], DeviceConfig).resources.trace for name in scenario.names]
    assert [Trace.load(str(path)) for path in followed] == [first, second, first]
    assert list(scenario.stories.values()) == ["recorded, office.csv", "recorded, shed.csv", "recorded, office.csv"]
    assert scenario.most_cores == 16.0


def test_shards_do_not_overlap_each_other_or_the_calibration_images(tmp_path: Path, small: Scenario) -> None:
    folder = tmp_path / "report"
    claim_folder(folder)
    commands = write_files(small, folder, host="127.0.0.1", port=4321)
    federation = load_config(commands["aggregator"][-1], FederationConfig)
    shards = [load_config(commands[name][-1], DeviceConfig).data.shard for name in small.names]
    assert [shard.index for shard in shards if shard] == [0, 1]
    for shard in shards:
        assert shard is not None
        assert (shard.kind, shard.alpha, shard.shards) == ("dirichlet", small.alpha, 2)
        # The same cut for all, with the same images left to the aggregator.
        assert (shard.held_back, shard.seed) == (federation.evaluation.calibration_images, federation.evaluation.seed)


def test_the_weak_board_does_not_get_most_of_the_images() -> None:
    scenario = default_scenario()
    labels = np.repeat(np.arange(10), 6000)
    sizes = [
        len(shard)
        for shard in shard_indices(labels, kind="dirichlet", shards=4, seed=scenario.seed, alpha=scenario.alpha)
    ]
    assert sizes[3] < np.mean(sizes)


@pytest.mark.parametrize("draw", DRAW_POLICIES)
def test_the_demo_has_the_table_that_was_searched_for_its_draw_or_uniform_rates(tmp_path: Path, draw: str) -> None:
    scenario = default_scenario(draw=draw)
    folder = tmp_path / "report"
    claim_folder(folder)
    commands = write_files(scenario, folder, host="127.0.0.1", port=4321)
    written = load_config(commands["aggregator"][-1], FederationConfig).table
    table = build_table(written, scenario.network, scenario.training.batch)
    assert table.draw == draw
    name = f"demo-fashion-mnist-{draw}"
    if name in shipped_tables():
        assert written == TableChoice(name=name)
        assert table == shipped_table(name)
    else:
        assert table.origin == "uniform"
        assert len(table.rows) == 8


@pytest.mark.parametrize("draw", ["ordered", "random"])
@pytest.mark.parametrize("ceiling", [0.3, 0.5, 1.0])
def test_every_ceiling_leaves_rows_to_choose_from(draw: str, ceiling: float) -> None:
    scenario = default_scenario(draw=draw)
    assert ceiling in {step.ceiling for step in scenario.ceiling}
    table = build_table(scenario.table, scenario.network, scenario.training.batch)
    allowed = table.under(ceiling)
    assert len(allowed) >= 4
    # The weak board has a row to go down to, and the others can make use of what the ceiling lets them.
    assert allowed[0].macs < 0.1 * table.rows[-1].macs
    assert allowed[-1].macs > 0.5 * ceiling * table.rows[-1].macs


def test_what_is_written_of_a_table_does_not_contradict_it(tmp_path: Path) -> None:
    scenario = default_scenario(draw="random")
    folder = tmp_path / "report"
    claim_folder(folder)
    path = Path(write_files(scenario, folder, host="127.0.0.1", port=4321)["aggregator"][-1])
    section = path.read_text(encoding="utf-8").partition("[table]\n")[2].partition("\n[")[0]
    assert "random" in section
    assert "ordered" not in section


@pytest.mark.parametrize(("seconds", "least"), [(1.0, 2), (180.0, 8)])
def test_fewer_seconds_give_fewer_rounds_but_at_least_two(seconds: float, least: int) -> None:
    scenario = default_scenario(seconds=seconds)
    assert scenario.rounds >= least
    assert scenario.rounds * scenario.round_s <= max(seconds + scenario.round_s, 2 * scenario.round_s)
