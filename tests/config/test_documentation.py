"""`docs/configuration.md` against the structs: every key with its bounds and default, and its examples."""

from __future__ import annotations

import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from distreal_edge import zoo
from distreal_edge.config import DeviceConfig, FederationConfig, load_config
from distreal_edge.config.fields import PATTERNS
from distreal_edge.data import available_datasets
from distreal_edge.dropout import DRAW_POLICIES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ROLES: dict[str, Any] = {"device.toml": DeviceConfig, "federation.toml": FederationConfig}
PLAIN = {str: "text", bool: "true or false", int: "whole number", float: "number"}


def number(value: float) -> str:
    return (
        f"{value:g}"
        if 1e-5 < abs(value) < 1e5 or value == 0
        else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    )


def bounds(meta: msgspec.Meta) -> str:
    low = f"above {number(meta.gt)}" if meta.gt is not None else number(meta.ge or 0)
    high = f"below {number(meta.lt)}" if meta.lt is not None else number(meta.le or 0)
    return f"{low} to {high}"


def values(annotation: Any) -> str:
    """Say in words what a key may be."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in {Union, UnionType}:
        return " or ".join(values(each) for each in arguments if each is not NoneType)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"list: {values(arguments[0])}"
    if origin is Annotated:
        inner, meta = arguments
        if meta.pattern is not None and inner is str:
            return "text" if meta.min_length else "name"
        return f"{values(inner)}, {bounds(meta)}" if inner in {int, float} else values(inner)
    return PLAIN[annotation]


def default(field: Any) -> str:
    if field.required:
        return "required"
    if field.default in (None, ()):
        return "none"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def struct_in(annotation: Any) -> type[msgspec.Struct] | None:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next((found for part in get_args(annotation) if (found := struct_in(part)) is not None), None)


def expected(kind: type[msgspec.Struct], section: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Return (section, key) -> (values, default) for a file."""
    hints = get_type_hints(kind, include_extras=True)
    rows: dict[tuple[str, str], tuple[str, str]] = {}
    for field in msgspec.structs.fields(kind):
        inner = struct_in(hints[field.name])
        if inner is None:
            rows[section, field.name] = (values(hints[field.name]), default(field))
        else:
            rows |= expected(inner, f"{section}.{field.name}".removeprefix("."))
    return rows


def documented(role: str) -> dict[tuple[str, str], tuple[str, str]]:
    rows: dict[tuple[str, str], tuple[str, str]] = {}
    chapter = DOCUMENT.read_text().partition(f"## `{role}`")[2].partition("\n## ")[0]
    section = ""
    for line in chapter.splitlines():
        heading = re.match(r"### `\[+([a-z_.]+)\]+`", line)
        if heading:
            section = heading[1]
        row = re.match(r"\| `([a-z_]+)` \| (.*?) \| (.*?) \| (.+) \|$", line)
        if row:
            rows[section, row[1]] = (row[2], row[3])
    return rows


@pytest.mark.parametrize("role", ROLES)
def test_every_key_stands_in_the_document_with_its_bounds_and_default(role: str) -> None:
    assert documented(role) == expected(ROLES[role], "")


@pytest.mark.parametrize("role", ROLES)
def test_the_examples_are_sound(role: str, tmp_path: Path) -> None:
    chapter = DOCUMENT.read_text().partition(f"## `{role}`")[2].partition("\n## ")[0]
    examples = re.findall(r"```toml\n(.*?)```", chapter, re.DOTALL)
    assert examples
    for example in examples:
        (tmp_path / role).write_text(example)
        load_config(tmp_path / role, ROLES[role])


@pytest.mark.parametrize("names", [zoo.NETWORKS, DRAW_POLICIES, available_datasets()])
def test_every_name_that_can_be_chosen_is_listed(names: Any) -> None:
    text = DOCUMENT.read_text()
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_kind_of_text_is_told_apart() -> None:
    assert len(PATTERNS) == 2  # name and text, as `values` says
