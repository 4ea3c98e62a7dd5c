from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from distreal_edge.demo.folder import claim_folder
from distreal_edge.errors import ConfigError, StateError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert not claim_folder(tmp_path / "empty")
    assert not claim_folder(tmp_path / "new" / "inner")
    assert json.loads((tmp_path / "new" / "inner" / "report.json").read_text(encoding="utf-8"))["outcome"] == "running"


def test_an_earlier_report_is_replaced_and_what_is_not_ours_is_kept(tmp_path: Path) -> None:
    claim_folder(tmp_path)
    for name in ("accuracy.png", "logs/pi-9.log", "notes.txt"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    assert claim_folder(tmp_path)
    assert not (tmp_path / "accuracy.png").exists()
    assert not (tmp_path / "logs" / "pi-9.log").exists()
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("report", [None, "{}", "not json", '{"program": "another"}', "[]"])
def test_a_folder_of_another_program_is_left_as_it_is(tmp_path: Path, report: str | None) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.log").write_text("mine", encoding="utf-8")
    if report is not None:
        (tmp_path / "report.json").write_text(report, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not empty and holds no report of an earlier demo; name another folder"):
        claim_folder(tmp_path)
    assert (tmp_path / "logs" / "mine.log").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StateError, match="cannot write the report there"):
        claim_folder(tmp_path / "file" / "inner")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error_of_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StateError):
        claim_folder(tmp_path / "inner")
