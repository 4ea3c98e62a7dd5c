"""`docs/simulate.md` against the program: every key of a scenario, every strategy, every option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

from distreal_edge.cli.simulate import simulate
from distreal_edge.simulate import RIVALS, Scenario
from distreal_edge.simulate.scenario import Availability

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "simulate.md").read_text(encoding="utf-8")
ELSEWHERE = {"average", "hostile_share", "most_epochs", "statistics_images", "seed"}


def documented() -> dict[str, tuple[list[str], list[str]]]:
    """Return the keys of each section, and their defaults, as the table has them."""
    sections: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}
    table = PAGE.partition("| key | default | |")[2].partition("\n\n")[0]
    section = ""
    for line in table.splitlines()[2:]:
        first, default = (cell.strip() for cell in line.split("|")[1:3])
        if heading := re.fullmatch(r"\*\*`\[+([a-z]+)\]+`\*\*", first):
            section = heading[1]
            sections[section] = ([], [])
            continue
        sections[section][0].extend(re.findall(r"`(\w+)`", first))
        sections[section][1].extend(default.split(", ") if first.count("`") > 2 else [default])
    return sections


def test_every_key_stands_in_the_table() -> None:
    sections = documented()
    hints = get_type_hints(Scenario)
    inner = {name for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, msgspec.Struct)}
    assert set(sections[""][0]) | set(sections) - {""} == set(Scenario.__struct_fields__)
    for section in inner - {"network"}:
        assert set(sections[section][0]) == set(hints[section].__struct_fields__) - (
            ELSEWHERE if section in {"rounds", "training"} else set()
        )


def test_every_default_that_is_a_number_is_the_programs() -> None:
    hints = get_type_hints(Scenario)
    for section, (keys, defaults) in documented().items():
        kind = Scenario if not section else hints[section]
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            continue
        known = {field.name: field.default for field in msgspec.structs.fields(kind)}
        for key, default in zip(keys, defaults, strict=False):
            if re.fullmatch(r"`[\d.]+`", default):
                assert float(default.strip("`")) == known[key], key


def test_every_strategy_stands_in_the_page() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \| [^|]+ \|$", PAGE.partition("## The strategies")[2], re.MULTILINE)[
        : len(RIVALS)
    ] == list(RIVALS)


@pytest.mark.parametrize("kind", get_args(get_type_hints(Availability)["kind"]))
def test_every_kind_of_availability_is_explained(kind: str) -> None:
    assert f"- `{kind}`:" in PAGE


def test_every_option_stands_in_the_page() -> None:
    options = {option for each in simulate.params for option in each.opts if option.startswith("--")}
    assert options <= set(re.findall(r"--[a-z]+", PAGE))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", PAGE)) - {""}))
def test_links_lead_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
