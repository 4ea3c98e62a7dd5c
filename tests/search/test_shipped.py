"""The tables inside the package, held against their names and the networks that they are for."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import distreal_edge as de
from distreal_edge.demo import default_scenario
from distreal_edge.errors import ConfigError
from distreal_edge.search import shipped_table, shipped_tables
from distreal_edge.zoo import NETWORKS

if TYPE_CHECKING:
    from distreal_edge import Network, Table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "distreal_edge" / "tables"
DATA = {"cifar10": (3, 32, 32), "fashion-mnist": (1, 28, 28)}
LARGEST_FILE_BYTES = 200_000

of_every_table = pytest.mark.parametrize("name", shipped_tables())


def parts(name: str) -> tuple[str, str, str]:
    """Return network, data and draw of a name; data may have hyphens."""
    network, _, rest = name.partition("-")
    data, _, draw = rest.rpartition("-")
    return network, data, draw


@cache
def network_of(name: str) -> Network:
    network, data, _ = parts(name)
    if network == "demo":
        return default_scenario().network
    channels, side, _ = DATA[data]
    return NETWORKS[network](in_channels=channels, image_size=side)


@cache
def table_of(name: str) -> Table:
    return shipped_table(name)


def test_these_tables_are_shipped() -> None:
    assert shipped_tables() == (
        "demo-fashion-mnist-ordered",
        "demo-fashion-mnist-random",
        "densenet40-cifar10-ordered",
        "resnet20-cifar10-ordered",
        "resnet20-cifar10-random",
    )


def test_the_folder_holds_tables_and_nothing_else_and_all_are_listed() -> None:
    assert {f"{name}.json" for name in shipped_tables()} == {file.name for file in FOLDER.iterdir()}
    assert all(file.stat().st_size < LARGEST_FILE_BYTES for file in FOLDER.iterdir())


@of_every_table
def test_a_table_belongs_to_the_network_data_and_draw_in_its_name(name: str) -> None:
    table, network = table_of(name), network_of(name)
    table.check_network(network.structure, network.plan.sizes)
    assert (table.data, table.draw) == parts(name)[1:]
    assert network.plan.input_shape == DATA[table.data]


@of_every_table
def test_a_table_has_many_rows_that_rise_in_cost_and_score_to_the_full_network(name: str) -> None:
    rows = table_of(name).rows
    assert 16 <= len(rows) <= 64
    for one, next_one in pairwise(rows):
        assert one.macs < next_one.macs
        assert one.score < next_one.score
    assert not any(rows[-1].vector)


@of_every_table
def test_a_row_costs_what_it_says_on_that_network(name: str) -> None:
    table, network = table_of(name), network_of(name)
    assert [network.cost(row.vector).macs for row in table.rows] == [row.macs for row in table.rows]


@of_every_table
def test_a_table_comes_from_a_search_and_its_rates_differ_from_group_to_group(name: str) -> None:
    table = table_of(name)
    assert table.origin.startswith("search")
    assert any(len({*row.vector}) > 1 for row in table.rows)


@of_every_table
def test_the_evidence_and_the_pictures_of_a_table_are_in_the_documentation(name: str) -> None:
    beside = {file.name for file in (ROOT / "docs" / "search").iterdir()}
    assert {f"{name}.{end}" for end in ("evidence.json", "front.png", "rates.png", "hypervolume.png")} <= beside


def test_preprocessing_and_weights_change_no_table() -> None:
    preprocessing = de.Preprocessing(mean=(0.5,) * 3, std=(0.2,) * 3, crop_padding=4, horizontal_flip=True)
    network = de.zoo.resnet20(seed=9, preprocessing=preprocessing)
    for draw in {parts(name)[2] for name in shipped_tables() if name.startswith("resnet20-")}:
        shipped_table(f"resnet20-cifar10-{draw}").check_network(network.structure, network.plan.sizes)


@pytest.mark.parametrize("name", ["", "..", "../tables/resnet20-cifar10-ordered", "resnet20-cifar10-ordered.json", "/"])
def test_only_whole_names_are_known(name: str) -> None:
    with pytest.raises(ConfigError, match="no table of the package is called"):
        shipped_table(name)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_that_there_are() -> None:
    first = shipped_tables()[0]
    with pytest.raises(ConfigError) as caught:
        shipped_table(first.replace("-", "_"))
    assert str(caught.value) == (
        f"no table of the package is called {first.replace('-', '_')!r}; did you mean {first!r}? "
        f"there are {', '.join(shipped_tables())}"
    )
    with pytest.raises(ConfigError, match=r"is called 'xyz'; there are .*") as caught:
        shipped_table("xyz")
    assert "did you mean" not in str(caught.value)


def test_a_profile_that_was_measured_beside_a_table_is_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distreal_edge.search.shipped.files", lambda _: tmp_path)
    (tmp_path / "tables").mkdir()
    for name in ("a-b-ordered.json", "a-b-ordered.profile.json", "read.me"):
        (tmp_path / "tables" / name).touch()
    assert shipped_tables() == ("a-b-ordered",)
