from __future__ import annotations

import hashlib
import logging
import os
from typing import TYPE_CHECKING

import pytest

from distreal_edge.device import Spool
from distreal_edge.device.rounds import task_of
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.transport import Manifest


def task(number: int, model: str = "a" * 16) -> str:
    return f"{number:010d}-{model}"


def test_what_is_stored_is_found_again_newest_round_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for uid, number in (("late", 2), ("newest", 2**31 - 1), ("early", 1)):
        spool.add(uid, task(number), uid.encode())
    again = Spool(tmp_path / "spool")
    assert again.waiting() == ("newest", "late", "early")
    assert again.tasks() == {task(1), task(2), task(2**31 - 1)}
    path = again.path("late")
    assert path is not None
    assert path.read_bytes() == b"late"
    assert again.path("other") is None


def test_a_task_is_a_round_of_a_model(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    tasks = [task_of(make_manifest(*which)) for which in ((9,), (10,), (2**31 - 1,))]
    assert tasks == sorted(tasks)
    assert task_of(make_manifest(9)) != task_of(make_manifest(9, model=b"another"))
    Spool(tmp_path).add("u", tasks[0], b"1")
    assert Spool(tmp_path).tasks() == {tasks[0]}


def test_what_is_removed_is_gone_and_removing_it_twice_does_no_harm(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add("a", task(1), b"1")
    spool.add("b", task(2), b"2")
    for _ in range(2):
        spool.remove("a")
    assert spool.waiting() == ("b",)


def test_an_uid_that_ends_like_another_is_not_taken_for_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add("x-a", task(1), b"1")
    assert spool.path("a") is None
    spool.remove("a")
    assert spool.waiting() == ("x-a",)


def test_files_of_other_names_are_left_alone_and_never_sent(tmp_path: Path) -> None:
    names = (
        "readme",
        "r1-u.update",
        f"r{task(1)}-u.update",
        f"r{task(1)}-u.{16 * 'a'}.update\n",
        f"r{task(1)}-u.{16 * 'a'}.update.bak",
        f"r{task(1)}-a b.{16 * 'a'}.update",
    )
    for name in names:
        (tmp_path / name).write_bytes(b"")
    spool = Spool(tmp_path)
    assert spool.waiting() == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_power_cut_while_storing_leaves_the_update_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    class PowerCutError(BaseException):
        pass

    def cut(*_: object) -> None:
        raise PowerCutError

    Spool(tmp_path).add("old", task(1), b"old")
    with monkeypatch.context() as patched:
        if call == "write":
            # half of it reaches the disk
            (tmp_path / f"r{task(2)}-new.{16 * 'a'}.update.unfinished").write_bytes(b"ne")
        elif call == "fsync":
            patched.setattr(os, "fsync", cut)
        else:
            patched.setattr("pathlib.Path.replace", cut)
        if call != "write":
            with pytest.raises(PowerCutError):
                Spool(tmp_path).add("new", task(2), b"new")
    after = Spool(tmp_path)
    assert after.waiting() == ("old",)
    digest = hashlib.sha256(b"old").hexdigest()[:16]
    assert [path.name for path in tmp_path.iterdir()] == [f"r{task(1)}-old.{digest}.update"]


@pytest.mark.parametrize("damaged", [b"", b"ol", b"olc", b"older"])
def test_an_update_that_has_changed_on_the_disk_is_moved_away_and_never_sent(
    tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool")
    path = spool.add("a", task(1), b"old")
    spool.add("b", task(2), b"new")
    path.write_bytes(damaged)
    after = Spool(tmp_path / "spool")
    assert (after.waiting(), after.tasks()) == (("b",), {task(2)})
    (moved,) = (tmp_path / "quarantine").iterdir()
    assert moved.name.startswith(path.name)
    assert moved.read_bytes() == damaged
    (message,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert f"{path}: has changed since it was written; moved to quarantine/" in message
    caplog.clear()
    assert Spool(tmp_path / "spool").waiting() == ("b",)
    assert not caplog.records


def test_a_folder_that_cannot_be_used_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="a file is in its place"):
        Spool(tmp_path / "file")
    spool = Spool(tmp_path / "spool")
    (tmp_path / "spool").rmdir()
    with pytest.raises(StateError, match="cannot be read"):
        spool.waiting()
