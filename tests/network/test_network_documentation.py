"""What docs/network-format.md says, held against the code."""

from __future__ import annotations

import hashlib
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from distreal_edge.network import Network, Plan, PlanBuilder, Preprocessing
from distreal_edge.network.file import FORMAT_VERSION, MAXIMUM_FILE_BYTES, MAXIMUM_HEADER_BYTES
from distreal_edge.network.operations import OPERATION_TYPES, Operation
from distreal_edge.network.plan import (
    MAXIMUM_CHANNELS,
    MAXIMUM_ELEMENTS,
    MAXIMUM_GROUPS,
    MAXIMUM_OPERATIONS,
    MAXIMUM_SIDE,
)

PAGE = (Path(__file__).parents[2] / "docs" / "network-format.md").read_text()


def test_the_page_tells_every_kind_and_every_field() -> None:
    for kind in OPERATION_TYPES:
        assert f"`{kind.__struct_config__.tag}`" in PAGE
        for field in kind.__struct_fields__:
            assert f"`{field}`" in PAGE
    for field in Preprocessing.__struct_fields__:
        assert f"`{field}`" in PAGE


@pytest.mark.parametrize(
    "sentence",
    [
        f"version {FORMAT_VERSION}",
        f"at most {MAXIMUM_HEADER_BYTES:,}",
        f"at most {MAXIMUM_FILE_BYTES:,} bytes",
        f"1 to {MAXIMUM_OPERATIONS} operations",
        f"at most {MAXIMUM_CHANNELS:,} channels or features",
        f"at most {MAXIMUM_ELEMENTS:,} elements",
        f"at most {MAXIMUM_GROUPS}",
        f"each 1 to {MAXIMUM_SIDE}",
    ],
)
def test_the_page_tells_the_caps_of_the_code(sentence: str) -> None:
    assert sentence in " ".join(PAGE.split())


def test_the_pages_example_is_a_plan() -> None:
    document = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])
    operations = msgspec.convert(document["operations"], type=tuple[Operation, ...])
    preprocessing = msgspec.convert(document["preprocessing"], type=Preprocessing)
    plan = Plan(document["input_shape"], operations, document["rescale"], preprocessing)
    assert document["format"] == FORMAT_VERSION
    assert document["groups"] == [{"name": group.name, "filters": group.filters} for group in plan.groups]
    assert plan.tensors["conv.weight"] == (8, 1, 3, 3)  # as the page's header has it
    data = Network.initialise(plan).to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["conv.weight"]["data_offsets"] == [128, 416]


def _canonical(document: Any) -> str:
    """Write JSON as the page's chapter on the digest says."""
    if isinstance(document, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_canonical(document[key])}" for key in sorted(document)) + "}"
    if isinstance(document, (list, tuple)):
        return "[" + ",".join(map(_canonical, document)) + "]"
    if not isinstance(document, float):
        return json.dumps(document)
    if document == 0 or abs(document) >= 1e-5:
        plain = format(Decimal(repr(document)), "f")
        return plain if "." in plain else f"{plain}.0"
    return repr(document).replace("e-0", "e-")


def test_the_digest_is_the_one_that_the_page_describes() -> None:
    builder = PlanBuilder((3, 6, 6))
    value = builder.conv2d("conv", builder.input, 2, kernel=3)
    for number, epsilon in enumerate((1e-5, 1.5e-6, 1e-7, 3e-12, 0.001, 1.0)):
        value = builder.batch_norm(f"bn{number}", value, epsilon=epsilon, momentum=epsilon)
    value = builder.flatten(builder.dropout(value, 0.0))
    preprocessing = Preprocessing(mean=(-1e6, 123456.75, -0.25), std=(1e6, 1e-6, 2 / 3))
    plan = builder.finish(builder.linear("fc", value, 2), preprocessing=preprocessing)
    stated = {
        "input_shape": plan.input_shape,
        "operations": msgspec.to_builtins(plan.operations),
        "preprocessing": msgspec.to_builtins(plan.preprocessing),
        "rescale": plan.rescale,
    }
    assert plan.digest == hashlib.sha256(_canonical(stated).encode()).hexdigest()
