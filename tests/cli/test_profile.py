from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import distreal_edge as de
from distreal_edge.dropout import Profile
from distreal_edge.search import shipped_table, uniform_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUICK = ("--seconds", "0.001", "--cool-down", "0", "--threads", "1,2")
SMALL = ("--image-size", "8", "--classes", "4")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the board be cool and idle, whatever else this machine does."""
    monkeypatch.setattr("distreal_edge.bench.disturbance.read_busy_seconds", lambda roots: {})
    monkeypatch.setattr("distreal_edge.bench.machine.read_temperature_c", lambda roots: None)
    monkeypatch.setattr("distreal_edge.bench.profile._LOOK_S", 0.0)


@pytest.fixture
def table(tmp_path: Path, cli: object) -> Path:
    """Return the file of a table for a small network of the zoo, in the folder in which commands run."""
    path = tmp_path / "table.json"
    uniform_table(de.zoo.resnet8(classes=4, image_size=8), rows=3, batch=4).save(path)
    return path


def refused(result: Any, code: int, said: str) -> None:
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("distreal-edge: ")
    assert said in line


def test_a_profile_is_written_beside_the_table_and_chooses_rows(cli: Callable[..., Any], table: Path) -> None:
    shown = cli("profile", "resnet8", "--table", "table.json", *SMALL, *QUICK)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    for said in ("ms on 1", "ms on 2", "% MACs", "MB", "images/s", "±", "100.0", "Written to table.profile.json."):
        assert said in shown.stdout
    loaded = de.Table.load(table)
    assert loaded.profile is not None
    assert (loaded.profile.threads, loaded.profile.batch, loaded.profile.disturbed) == ((1, 2), 4, ())
    assert loaded.best(seconds=3600.0, threads=2, memory_bytes=200e6) == loaded.rows[-1]
    assert loaded.best(seconds=0.0) == loaded.rows[0]


def test_a_shipped_table_is_named_and_its_profile_lands_in_the_current_folder(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    name = "resnet20-cifar10-ordered"
    quick = ("--seconds", "0.001", "--cool-down", "0", "--threads", "1", "--batch", "2")
    shown = cli("profile", "resnet20", "--table", name, *quick)
    assert shown.returncode == 0, shown.stderr
    profile = Profile.load(tmp_path / f"{name}.profile.json")
    assert profile.table == shipped_table(name).digest
    refused(cli("profile", "resnet20", "--table", "resnet20-cifar10", *quick), 5, "cannot read the table")


def test_a_stale_profile_is_replaced(cli: Callable[..., Any], table: Path) -> None:
    (table.parent / "table.profile.json").write_text("{}")
    shown = cli("profile", "resnet8", "--table", "table.json", *SMALL, *QUICK)
    assert shown.returncode == 0, shown.stderr
    assert de.Table.load(table).profile is not None


def test_a_document_is_the_profile(cli: Callable[..., Any], table: Path) -> None:
    de.zoo.resnet8(classes=4, image_size=8).save(table.parent / "net.safetensors")
    arguments = ("--batch", "2", "--out", "elsewhere.json", "--json")
    shown = cli("profile", "net.safetensors", "--table", "table.json", *QUICK, *arguments)
    assert shown.returncode == 0, shown.stderr
    profile = Profile.from_bytes(shown.stdout.encode())
    assert profile == Profile.load(table.parent / "elsewhere.json")
    assert profile.batch == 2
    assert not (table.parent / "table.profile.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["resnet8", "--table", "none.json", *SMALL], 5, "none.json: cannot read the table: No such file"),
        (["resnet8", "--table", "net.safetensors", *SMALL], 5, "not a table of dropout vectors"),
        (["resnet9", "--table", "table.json"], 3, "resnet9: neither a network's file nor one of the zoo: densenet40, "),
        (["table.json", "--table", "table.json"], 3, "table.json: "),
        (["resnet8", "--table", "table.json"], 5, "or say --classes, --in-channels and --image-size of the table's"),
        (["other.safetensors", "--table", "table.json"], 5, "fill a table for this network"),
        (["net.safetensors", "--table", "table.json", *SMALL], 2, "--classes: leave it out, the network's file says"),
        (["resnet8", *SMALL], 2, "Missing option '--table'"),
        (["--table", "table.json"], 2, "Missing argument 'NETWORK'"),
        (["resnet8", "--table", "table.json", *SMALL, "--threads", "1,two"], 2, "--threads '1,two': write numbers"),
        (["resnet8", "--table", "table.json", *SMALL, "--threads", "0"], 2, "--threads '0': write numbers from 1"),
        (["resnet8", "--table", "table.json", *SMALL, "--threads", "9" * 5000], 2, "write numbers from 1 to 256"),
        (["resnet8", "--table", "table.json", *SMALL, "--batch", "0"], 2, "--batch"),
        (["resnet8", "--table", "table.json", *SMALL, "--seconds", "nan"], 2, "--seconds"),
        (
            ["resnet8", "--table", "table.json", *SMALL, "--out", "no/where.json"],
            5,
            "no/where.json: the profile cannot be written there",
        ),
        (["resnet8", "--table", "table.json", *SMALL, "--out", "/proc/where.json"], 5, "cannot be written there"),
        (["resnet8", "--table", "table.json", *SMALL, "--out", "a" * 300], 5, "cannot be written there"),
        (["resnet8", "--table", "a" * 300, *SMALL], 5, "cannot read the table: File name too long"),
        (["a" * 300, "--table", "table.json"], 3, "neither a network's file nor one of the zoo"),
        (["resnet8", "--table", "table.json", *SMALL, "--out", "table.json"], 2, "this is the table itself"),
        (["resnet8", "--table", "table.json", *SMALL, "--out", "."], 5, ".: the profile cannot be written there"),
        (["resnet8", "--table", "table.json", *SMALL, "--cool-down", "nan"], 2, "--cool-down"),
    ],
)
def test_what_cannot_be_profiled_is_one_line(
    cli: Callable[..., Any], table: Path, arguments: list[str], code: int, said: str
) -> None:
    de.zoo.resnet8(classes=4, image_size=8).save(table.parent / "net.safetensors")
    de.zoo.resnet8(classes=5, image_size=8).save(table.parent / "other.safetensors")
    before = table.read_bytes()
    refused(cli("profile", *arguments), code, said)
    assert table.read_bytes() == before
    assert not (table.parent / "table.profile.json").exists()


def test_a_busy_board_is_measured_by_force_only(
    cli: Callable[..., Any], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = iter(range(10**6))
    monkeypatch.setattr(
        "distreal_edge.bench.disturbance.read_busy_seconds",
        lambda roots: dict.fromkeys(range(512), 100.0 * next(passed)),
    )
    arguments = ("profile", "resnet8", "--table", "table.json", *SMALL, *QUICK)
    refused(cli(*arguments), 1, "not measured: others use ")
    assert not (table.parent / "table.profile.json").exists()
    shown = cli(*arguments, "--force", "--json")
    assert shown.returncode == 0
    assert "distreal-edge: measured all the same: others use" in shown.stderr
    assert len(json.loads(shown.stdout)["disturbed"]) == 2
    assert len(Profile.load(table.parent / "table.profile.json").disturbed) == 2
