"""docs/commands.md against the program: its verbs, its exit codes, the doctor's checks, and what `record` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distreal_edge import doctor, errors
from distreal_edge.cli import _VERBS
from distreal_edge.device import Trace
from distreal_edge.device.recording import HEADER
from distreal_edge.device.trace import MOST_LINES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "commands.md").read_text(encoding="utf-8")


def chapter(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    rows = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    return [row.strip("`") for row in rows if row not in {"verb", "code", "exit code", "check", "---"}]


def test_every_verb_is_in_the_table() -> None:
    assert sorted(first_cells(PAGE.partition("\n## ")[0])) == sorted(_VERBS)


def test_every_exit_code_is_in_the_table() -> None:
    codes = {each.exit_code for each in vars(errors).values() if isinstance(each, type)}
    assert set(first_cells(chapter("Exit codes"))) == {"0", "130", *map(str, codes)}


def test_every_check_of_the_doctor_is_in_the_table() -> None:
    sources = [*Path(doctor.__file__).parent.glob("*.py"), Path(doctor.__file__).parents[1] / "cli" / "doctor.py"]
    checks = {name for path in sources for name in re.findall(r'Finding\(\s*"([a-z ]+)"', path.read_text("utf-8"))}
    documented = {"certificate", *first_cells(chapter("doctor"))}  # which no configuration has yet
    assert documented == checks


def test_the_example_of_a_recording_is_a_trace(tmp_path: Path) -> None:
    (example,) = re.findall(rf"^    ({HEADER.strip()}\n(?:    .+\n)+)", chapter("record"), re.MULTILINE)
    (tmp_path / "trace.csv").write_text(example.replace("    ", ""))
    trace = Trace.load(tmp_path / "trace.csv")
    assert (trace.at(8.0), trace.temperature_c_at(8.0)) == (2.87, 49.6)
    assert f"{MOST_LINES:,} lines" in chapter("record")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", PAGE)) - {""}))
def test_links_lead_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
