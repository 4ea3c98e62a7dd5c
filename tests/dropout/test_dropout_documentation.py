"""What docs/dropout.md says, held against the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import distreal_edge as de
from distreal_edge.dropout import DRAW_POLICIES, MAXIMUM_ROWS, MAXIMUM_TABLE_BYTES, SCHEMA_VERSION
from distreal_edge.search import shipped_table, shipped_tables

if TYPE_CHECKING:
    import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "dropout.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_pages_example_runs() -> None:
    made: dict[str, object] = {}
    exec(compile(_blocks("python")[0], "docs/dropout.md", "exec"), made)
    cost, row = made["cost"], made["row"]
    assert isinstance(cost, de.Cost)
    assert isinstance(row, de.Row)
    assert cost.macs == row.macs


def test_the_pages_shipped_table_fits_its_network(capsys: pytest.CaptureFixture[str]) -> None:
    made: dict[str, object] = {}
    for block in _blocks("python"):
        exec(compile(block, "docs/dropout.md", "exec"), made)
    assert isinstance(made["table"], de.Table)
    assert capsys.readouterr().out == f"{shipped_tables()}\n"


def test_the_page_tells_of_every_shipped_table() -> None:
    section = PAGE.partition("## Tables that are shipped")[2].partition("\n## ")[0]
    for name in shipped_tables():
        network, draw, data = name.partition("-")[0], name.rpartition("-")[2], shipped_table(name).data
        assert name == f"{network}-{data}-{draw}"
        assert all(f"`{part}`" in section for part in (network, data, draw))


def test_the_pages_table_is_a_table() -> None:
    text = _blocks("json")[0]
    table = de.Table.from_bytes(text.encode())
    assert table.schema == SCHEMA_VERSION
    builder = de.PlanBuilder((1, 28, 28))  # the network of docs/network-format.md
    value = builder.conv2d("conv", builder.input, 8, kernel=3, padding=1, bias=False)
    value = builder.flatten(builder.global_avg_pool(builder.relu(builder.batch_norm("bn", value))))
    preprocessing = de.Preprocessing(mean=(0.286,), std=(0.353,), crop_padding=2, horizontal_flip=True)
    plan = builder.finish(builder.linear("fc", value, 10), preprocessing=preprocessing)
    table.check_network(plan.structure, plan.sizes)
    network = de.Network.initialise(plan)
    assert [network.cost(row.vector).macs for row in table.rows] == [row.macs for row in table.rows]
    for field in (*json.loads(text), *json.loads(text)["rows"][0]):
        assert f"| `{field}` |" in PAGE


def test_the_page_tells_every_policy_and_the_caps() -> None:
    assert all(f"| `{policy}` |" in PAGE for policy in DRAW_POLICIES)
    assert f"1 to {MAXIMUM_ROWS} rows" in PAGE
    assert f"at most {MAXIMUM_TABLE_BYTES // 2**20} MiB" in PAGE
