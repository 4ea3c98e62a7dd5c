from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distreal_edge import durable
from distreal_edge.durable import (
    append_durably,
    held_folder,
    make_folder,
    quarantine,
    remove_durably,
    rename_durably,
    write_durably,
)
from distreal_edge.errors import StateError

REPOSITORY = Path(__file__).parents[2]


class Disk:
    """Record what is asked of the disk, in order, and stop at a given call as a power cut would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fail_at: int | None = None) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at
        fsync, rename = os.fsync, Path.replace

        def recorded_fsync(file: int) -> None:
            self._note(f"sync {Path(f'/proc/self/fd/{file}').readlink().name}")
            fsync(file)

        def recorded_rename(old: Path, new: Path) -> Path:
            self._note(f"rename {old.name} {new.name}")
            return rename(old, new)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(Path, "replace", recorded_rename)

    def _note(self, call: str) -> None:
        if len(self.calls) == self._fail_at:
            raise OSError(28, "No space left on device")
        self.calls.append(call)


def test_a_file_is_synced_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    write_durably(tmp_path / "a", b"new")
    assert disk.calls == ["sync a.unfinished", "rename a.unfinished a", f"sync {tmp_path.name}"]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("fail_at", [0, 1])
def test_a_disk_that_refuses_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    Disk(monkeypatch, fail_at=fail_at)
    with pytest.raises(StateError, match="cannot be written: No space left"):
        write_durably(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_folder_that_is_gone_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        write_durably(tmp_path / "none" / "a", b"new")
    with pytest.raises(StateError, match="cannot be removed"):
        remove_durably(tmp_path / "none" / "a")


def test_what_is_removed_stays_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    disk = Disk(monkeypatch)
    remove_durably(tmp_path / "a")
    remove_durably(tmp_path / "a")
    assert disk.calls == [f"sync {tmp_path.name}"] * 2
    assert not list(tmp_path.iterdir())


def test_a_new_folder_is_synced_into_those_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    make_folder(tmp_path / "a" / "b")
    assert disk.calls == [f"sync {tmp_path.name}", "sync a"]
    make_folder(tmp_path / "a" / "b")
    assert len(disk.calls) == 2


def test_a_folder_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be made: a file is in its place"):
        make_folder(tmp_path / "file" / "b")
    with pytest.raises(StateError, match="cannot be made: a file is in its place"):
        make_folder(tmp_path / "file")
    with pytest.raises(StateError, match="cannot be made: File name too long"):
        make_folder(tmp_path / ("a" * 300) / "b")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_below_a_closed_one_is_a_state_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(StateError, match="cannot be made: Permission denied"):
            make_folder(tmp_path / "closed" / "a")
    finally:
        os.seteuid(os.getuid())


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from distreal_edge.durable import held_folder\n"
        "with held_folder(Path(sys.argv[1])): print('held')"
    )
    again = [sys.executable, "-c", program, str(tmp_path / "state")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with held_folder(tmp_path / "state"):
        with pytest.raises(StateError, match="in use by another"), held_folder(tmp_path / "state"):
            pass
        refused = subprocess.run(again, env=environment, capture_output=True, text=True, check=False, timeout=30)
        assert "in use by another" in refused.stderr
    held = subprocess.run(again, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert held.stdout == "held\n"


def test_what_is_private_is_closed_to_others_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.unfinished").write_bytes(b"left behind, for all to read")
    (tmp_path / "key.unfinished").chmod(0o666)
    (tmp_path / "key").write_bytes(b"old")
    (tmp_path / "key").chmod(0o644)
    modes: list[int] = []
    fdopen = os.fdopen

    def recorded(descriptor: int, *arguments: str) -> object:
        status = os.fstat(descriptor)
        modes.append(status.st_mode & 0o777)
        assert status.st_size == 0
        return fdopen(descriptor, *arguments)

    monkeypatch.setattr(os, "fdopen", recorded)
    before = os.umask(0)
    try:
        write_durably(tmp_path / "key", b"new", private=True)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("key", b"new")]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_what_is_appended_is_synced_and_a_new_file_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    append_durably(tmp_path / "list", b"one\n")
    append_durably(tmp_path / "list", b"two\n")
    assert (tmp_path / "list").read_bytes() == b"one\ntwo\n"
    assert disk.calls == ["sync list", f"sync {tmp_path.name}", "sync list"]


def test_a_file_that_is_renamed_takes_the_others_place_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("next", "file"):
        (tmp_path / name).write_text(name)
    disk = Disk(monkeypatch)
    rename_durably(tmp_path / "next", tmp_path / "file")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["next"]
    assert disk.calls == ["rename next file", f"sync {tmp_path.name}"]
    with pytest.raises(StateError, match="cannot be written"):
        rename_durably(tmp_path / "next", tmp_path / "file")


def test_a_damaged_file_is_moved_away_under_its_name_and_the_time_and_never_over_another(tmp_path: Path) -> None:
    moved = []
    for content in ("one", "two", "three"):
        (tmp_path / "file.json").write_text(content)
        moved.append(quarantine(tmp_path / "file.json", tmp_path))
    assert not (tmp_path / "file.json").exists()
    assert [path.read_text() for path in moved] == ["one", "two", "three"]
    assert len(set(moved)) == 3
    assert all(re.fullmatch(r"file\.json\.\d{8}T\d{6}Z(-\d)?", path.name) for path in moved)
    with pytest.raises(StateError, match="cannot be moved"):
        quarantine(tmp_path / "file.json", tmp_path)


@pytest.mark.parametrize(
    ("most_files", "most_bytes", "kept"),
    [(3, 1000, ["b", "c", "d"]), (9, 35, ["c", "d"]), (9, 5, ["d"]), (9, 1000, ["a", "b", "c", "d"])],
)
def test_of_damaged_files_the_newest_are_kept_as_many_as_there_is_room_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most_files: int,
    most_bytes: int,
    kept: list[str],
) -> None:
    monkeypatch.setattr(durable, "_MOST_FILES", most_files)
    monkeypatch.setattr(durable, "_MOST_BYTES", most_bytes)
    for name, size in (("a", 1), ("b", 20), ("c", 15), ("d", 20)):
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (0, 1000 - size))  # when it was written does not matter
        moved = quarantine(tmp_path / name, tmp_path)
        assert moved.exists()
        while (tmp_path / "clock").touch() or (tmp_path / "clock").stat().st_ctime_ns <= moved.stat().st_ctime_ns:
            pass  # the file system's clock ticks a few hundred times a second
        (tmp_path / "quarantine" / "notes.txt").write_text("of the owner")
    assert sorted(path.name[0] for path in (tmp_path / "quarantine").iterdir()) == [*kept, "n"]
    removed = re.findall(r"removed (\d+) files?, the oldest", caplog.text)
    assert sum(map(int, removed)) == 4 - len(kept)
