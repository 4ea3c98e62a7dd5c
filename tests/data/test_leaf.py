"""FEMNIST as LEAF writes it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.data import leaf as leaf_format
from distreal_edge.data import load_dataset
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(3)


def pixels(count: int) -> list[list[float]]:
    # The first row is LEAF's background.
    return [[1.0] * 28 + [float(value) for value in RNG.random(756)] for _ in range(count)]


def leaf(**labels: list[int]) -> dict[str, Any]:
    data = {user: {"x": pixels(len(of_user)), "y": of_user} for user, of_user in labels.items()}
    return {"users": list(data), "num_samples": [len(of_user) for of_user in labels.values()], "user_data": data}


def write(root: Path, content: object, *, split: str = "train", name: str = "all_data_0.json") -> Path:
    (root / split).mkdir(parents=True, exist_ok=True)
    path = root / split / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("subfolder", [".", "data"])
def test_writers_of_all_files_are_read_and_numbered_by_name(tmp_path: Path, subfolder: str) -> None:
    first, second = leaf(f2=[0, 61], f9=[5]), leaf(f1=[10, 11, 12])
    first["hierarchies"] = ["ignored"]
    write(tmp_path / subfolder, second, name="all_data_1.json")
    write(tmp_path / subfolder, first)
    write(tmp_path / subfolder, leaf(f1=[3]), split="test")
    dataset = load_dataset("femnist", root=tmp_path, split="train")
    assert dataset.images.shape == (6, 1, 28, 28)
    assert dataset.labels.tolist() == [0, 61, 5, 10, 11, 12]
    assert dataset.writers is not None
    assert dataset.writers.tolist() == [1, 1, 2, 0, 0, 0]
    assert dataset.classes == 62
    expected = [
        [int(value * 255 + 0.5) for value in row]
        for content, user in ((first, "f2"), (first, "f9"), (second, "f1"))
        for row in content["user_data"][user]["x"]
    ]
    assert dataset.images.reshape(6, 784).tolist() == expected
    assert (dataset.images[:, 0, 0] == 255).all()
    assert len(load_dataset("femnist", root=tmp_path, split="test")) == 1


def test_pixels_that_json_writes_as_integers_are_read(tmp_path: Path) -> None:
    content = leaf(f1=[1])
    content["user_data"]["f1"]["x"] = [[1] * 783 + [0]]
    write(tmp_path, content)
    dataset = load_dataset("femnist", root=tmp_path, split="train")
    assert dataset.images.ravel().tolist() == [255] * 783 + [0]


def changed(change: str) -> object:
    content = leaf(f1=[1, 2], f2=[3])
    of_first = content["user_data"]["f1"]
    match change:
        case "cut":
            return json.dumps(content)[:-100]
        case "no user_data":
            del content["user_data"]
        case "label":
            of_first["y"][1] = 62
        case "label count":
            of_first["y"].append(1)
        case "image count":
            of_first["x"].append(of_first["x"][0])
        case "pixel count":
            of_first["x"][1].pop()
        case "range":
            of_first["x"][1][5] = 255.0
        case "text":
            of_first["x"] = "images"
        case "users":
            content["users"] = ["f1", "f3"]
        case "twice":
            content["users"] = ["f1", "f1"]
        case "num_samples":
            content["num_samples"] = [2]
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", "not a JSON file of LEAF, or cut short"),
        ("no user_data", "not a JSON file of LEAF.*user_data"),
        ("label", r"writer 'f1' has a label 62, outside 0\.\.61"),
        ("label count", "writer 'f1' has 3 labels but num_samples says 2"),
        ("image count", "writer 'f1' has 3 images but 2 labels"),
        ("pixel count", "image 1 of writer 'f1' has 783 pixels, not 784"),
        ("range", r"writer 'f1' has pixels .*\.\.255, LEAF's are 0\.\.1"),
        ("text", "images of writer 'f1' are not lists of numbers"),
        ("users", "'users' and 'user_data' name different writers"),
        ("twice", "'users' and 'user_data' name different writers"),
        ("num_samples", "2 users but 1 entry in num_samples"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, change: str, message: str) -> None:
    path = write(tmp_path, changed(change))
    with pytest.raises(DataError, match=re.escape(str(path)) + ": .*" + message):
        load_dataset("femnist", root=tmp_path, split="train")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, leaf(f1=[1]))
    monkeypatch.setattr(leaf_format, "LARGEST_BYTES", 1000)
    with pytest.raises(DataError, match=r"all_data_0\.json: \d+ bytes, the largest file accepted is 1000"):
        load_dataset("femnist", root=tmp_path, split="train")


def test_a_writer_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, leaf(f1=[1]))
    write(tmp_path, leaf(f1=[2]), name="all_data_1.json")
    with pytest.raises(DataError, match=r"writer 'f1' is already in .*all_data_0\.json; the folder mixes two runs"):
        load_dataset("femnist", root=tmp_path, split="train")
