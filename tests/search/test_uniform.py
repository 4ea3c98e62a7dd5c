from __future__ import annotations

import math
from itertools import pairwise

import pytest

from distreal_edge.dropout import Table, filter_counts
from distreal_edge.errors import ConfigError
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search import uniform_table


def _residual(width: int = 32, inner: int = 64) -> Network:
    builder = PlanBuilder((3, 8, 8))
    value = builder.conv2d("stem", builder.input, width, kernel=3, padding=1, bias=False)
    for block in range(2):
        thin = builder.conv2d(f"block{block}.conv1", value, inner, kernel=3, padding=1)
        value = builder.add(builder.conv2d(f"block{block}.conv2", thin, width, kernel=3, padding=1), value)
    return Network.initialise(builder.finish(builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), 10)))


def _chain(*widths: int) -> Network:
    builder = PlanBuilder((3, 8, 8))
    value = builder.input
    for number, width in enumerate(widths):
        value = builder.conv2d(f"conv{number}", value, width, kernel=3, padding=1)
    return Network.initialise(builder.finish(builder.linear("fc", builder.flatten(builder.global_avg_pool(value)), 10)))


def test_a_uniform_table_has_one_rate_per_row_and_ends_with_the_full_network() -> None:
    network = _residual()
    table = uniform_table(network, batch=16, data="cifar10", draw="random")
    assert len(table.rows) == 8
    assert all(len(set(row.vector)) == 1 for row in table.rows)
    assert table.rows[-1].vector == (0.0, 0.0, 0.0)
    assert (table.draw, table.data, table.batch, table.origin) == ("random", "cifar10", 16, "uniform")
    table.check_network(network.structure, network.plan.sizes)
    assert Table.from_bytes(table.to_bytes()) == table


def test_rows_say_what_the_network_says_they_cost() -> None:
    network = _residual()
    table = uniform_table(network, batch=16)
    for row in table.rows:
        cost = network.cost(row.vector, batch=16)
        assert (row.macs, row.peak_bytes) == (cost.macs, cost.peak_bytes)
        assert row.score == row.macs / table.rows[-1].macs


@pytest.mark.parametrize("keep_streams", [False, True])
@pytest.mark.parametrize("rows", [2, 5, 16])
def test_the_macs_rise_by_the_same_factor_from_row_to_row(rows: int, keep_streams: bool) -> None:
    table = uniform_table(_residual(64, 256), rows=rows, cheapest=0.1, keep_streams=keep_streams)
    assert len(table.rows) == rows
    assert 0.08 < table.rows[0].score <= 0.1
    for cheaper, dearer in pairwise(table.rows):
        assert math.log(dearer.score / cheaper.score) == pytest.approx(math.log(10) / (rows - 1), rel=0.35)


def test_every_row_is_the_widest_within_its_share() -> None:
    network = _chain(64, 64)
    full = network.cost((0.0, 0.0)).macs
    for number, row in enumerate(uniform_table(network, rows=6, cheapest=0.05).rows[:-1]):
        share = 0.05 ** (1 - number / 5)
        wider = [count + 1 for count in filter_counts(row.vector, network.plan.sizes)]
        assert row.macs <= share * full
        assert network.cost([1 - count / 64 for count in wider]).macs > share * full


def test_kept_streams_are_complete_in_every_row() -> None:
    network = _residual()
    assert [group.name for group in network.groups] == ["stem", "block0.conv1", "block1.conv1"]
    table = uniform_table(network, keep_streams=True)
    assert table.origin == "uniform, streams kept"
    assert all(row.vector[0] == 0.0 for row in table.rows)
    assert all(row.vector[1] == row.vector[2] > 0.0 for row in table.rows[:-1])


def test_kept_streams_go_no_lower_than_one_filter_in_each_inner_group() -> None:
    network = _residual()
    table = uniform_table(network, keep_streams=True, cheapest=0.001)
    assert filter_counts(table.rows[0].vector, network.plan.sizes) == (32, 1, 1)
    assert table.rows[0].score > 0.001


def test_a_network_without_streams_thins_all_its_groups() -> None:
    network = _chain(16, 16)
    thinned, uniform = uniform_table(network, keep_streams=True), uniform_table(network)
    assert thinned == uniform


def test_rows_that_keep_the_same_filters_come_once() -> None:
    network = _chain(3, 2)
    table = uniform_table(network, rows=50, cheapest=0.01)
    counts = [filter_counts(row.vector, network.plan.sizes) for row in table.rows]
    assert len(set(counts)) == len(counts) < 6
    assert counts[0] == (1, 1)
    assert counts[-1] == (3, 2)


def test_one_row_is_the_full_network() -> None:
    assert [row.vector for row in uniform_table(_chain(4), rows=1).rows] == [(0.0,)]
    builder = PlanBuilder((1, 4, 4))
    plan = builder.finish(builder.linear("fc", builder.flatten(builder.input), 2))
    assert [row.vector for row in uniform_table(Network.initialise(plan), rows=1).rows] == [()]


def test_settings_out_of_range_are_refused() -> None:
    network = _chain(4)
    for rows in (0, 257):
        with pytest.raises(ConfigError, match=f"a table has 1 to 256 rows, not {rows}"):
            uniform_table(network, rows=rows)
    for cheapest in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"the cheapest row's share of the MACs must be in \(0, 1\]"):
            uniform_table(network, cheapest=cheapest)
    with pytest.raises(ConfigError, match="unknown draw policy 'best'"):
        uniform_table(network, draw="best")


def test_a_network_with_nothing_to_thin_is_refused() -> None:
    builder = PlanBuilder((1, 4, 4))
    plan = builder.finish(builder.linear("fc", builder.flatten(builder.input), 2))
    with pytest.raises(ConfigError, match="no filters that can be dropped"):
        uniform_table(Network.initialise(plan))
    builder = PlanBuilder((1, 4, 4))
    stem = builder.conv2d("stem", builder.input, 4, kernel=1)
    value = builder.add(stem, builder.conv2d("next", stem, 4, kernel=1))
    network = Network.initialise(builder.finish(builder.linear("fc", builder.flatten(value), 2)))
    assert len(uniform_table(network).rows) > 1
    with pytest.raises(ConfigError, match="fill the table without keep_streams"):
        uniform_table(network, keep_streams=True)
