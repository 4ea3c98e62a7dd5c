"""docs/identity.md, word for word: its commands, the file that it shows, and what refusals say."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distreal_edge.cli import main
from distreal_edge.config import DeviceConfig, load_config
from distreal_edge.transport import tls

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "identity.md").read_text(encoding="utf-8")
BROKER = (DOCS.parent / "broker_config" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> int:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def test_its_commands_do_what_it_says(typed: Callable[[str], int]) -> None:
    commands = re.findall(r"^ {4,6}(distreal-edge .*)$", PAGE, re.MULTILINE)
    said = [*commands, *re.findall(r"`(distreal-edge keys [^`]*--broker [^`]*|distreal-edge keys add [^`]*)`", PAGE)]
    assert len(said) == 10
    for command in said:
        if " doctor " in command:
            continue
        if " enroll " in command:
            Path("keys/enrolment/pi-1.enrolment").rename("pi-1.enrolment")
        assert typed(command) == 0, command
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert Path("device.toml").read_text() == shown
    load_config("device.toml", DeviceConfig)


def test_what_it_shows_of_the_folder_is_there(typed: Callable[[str], int]) -> None:
    for command in re.findall(r"^    (distreal-edge keys (?:create|add) .*)$", PAGE, re.MULTILINE):
        typed(command)
    table = PAGE.partition("In it are")[2].partition("## 2.")[0]
    names = re.findall(
        r"`([^`\s]+)`", "\n".join(row.split("|")[1] for row in re.findall(r"^\| `.*$", table, re.MULTILINE))
    )
    assert sorted(names) == sorted(
        [
            "ca.key",
            "broker/",
            "enrolment/aggregator.enrolment",
            "enrolment/pi-1.enrolment",
            "ca.pem",
            "issued/",
            "settings.json",
        ]
    )
    assert [name for name in names if not (Path("keys") / name).exists()] == []


def test_refusals_are_quoted_as_they_are_said() -> None:
    table = PAGE.partition("## When it does not work")[2].partition("\n## ")[0]
    quoted = [row.partition(" ...")[0] for row in re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)][2:]
    said = " ".join(meaning for _, meaning, _ in tls._MEANINGS)
    said += tls.explain_loss("Connection reset by peer", tls=False, accepted=False)
    assert len(quoted) == 9
    assert [each for each in quoted if each not in said] == []


def test_both_pages_install_the_broker_in_the_same_way() -> None:
    def steps(text: str) -> list[str]:
        return re.findall(r"^    (sudo .*distreal-edge.*)$", text, re.MULTILINE)[:3]

    assert steps(PAGE.partition("## 2.")[2]) == steps(BROKER.partition("## For boards")[2])


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", PAGE)) - {""}))
def test_links_lead_somewhere(target: str) -> None:
    assert (DOCS / target).exists()
