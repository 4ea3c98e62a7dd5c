"""FEMNIST as LEAF's preprocessing writes it: folders train/ and test/ of JSON files, grouped by writer.

A file is `{"users": [...], "num_samples": [...], "user_data": {user: {"x": [[784 floats]], "y": [ints]}}}`. Floats are
0..1 with a background of 1.0; they are stored as uint8, rounded, background kept as it is. Parsed writer by writer,
because a file as a whole would take some thirty times its pixels as Python floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from distreal_edge.data.dataset import Dataset, Images, Split
from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from pathlib import Path

CLASSES: Final = 62
SIDE: Final = 28
LARGEST_BYTES: Final = 2 << 30


class Writer(msgspec.Struct, frozen=True):
    """The images of one writer, not parsed yet, and their labels."""

    x: msgspec.Raw
    y: list[int]


# Unknown fields are allowed: LEAF adds "hierarchies" for some datasets, and the file is not ours to restrict.
class LeafFile(msgspec.Struct, frozen=True):
    """One JSON file of LEAF."""

    users: list[str]
    num_samples: list[int]
    user_data: dict[str, Writer]


def read_femnist(root: Path, split: Split) -> Dataset | None:
    """Read one split of FEMNIST under `root`, or return None when there is no JSON in its folder.

    Files are taken in the order of their names; writers are numbered in the order of their names, within this split.
    """
    for folder in (root / split, root / "data" / split):
        paths = sorted(folder.glob("*.json"))
        if paths:
            return _read_folder(paths)
    return None


def _read_folder(paths: list[Path]) -> Dataset:
    images: list[Images] = []
    labels: list[list[int]] = []
    seen: dict[str, Path] = {}
    for path in paths:
        for user, writer in _read_file(path).items():
            if user in seen:
                raise DataError(
                    f"{path}: writer {user!r} is already in {seen[user]}; the folder mixes two runs of LEAF, empty it"
                    " and preprocess again"
                )
            seen[user] = path
            images.append(_pixels(path, user, writer))
            labels.append(writer.y)
    number_of = {user: number for number, user in enumerate(sorted(seen))}
    counts = [len(of_writer) for of_writer in labels]
    writers = np.repeat(np.array([number_of[user] for user in seen], np.int32), counts)
    flat = np.array([label for of_writer in labels for label in of_writer], np.int64)
    # The leading empty array keeps a folder without any writer from failing here.
    stacked = np.concatenate([np.empty((0, 1, SIDE, SIDE), np.uint8), *images])
    return Dataset(stacked, flat, CLASSES, writers, name="femnist")


def _read_file(path: Path) -> dict[str, Writer]:
    size_bytes = path.stat().st_size
    if size_bytes > LARGEST_BYTES:
        raise DataError(f"{path}: {size_bytes} bytes, the largest file accepted is {LARGEST_BYTES}")
    try:
        content = msgspec.json.decode(path.read_bytes(), type=LeafFile)
    except msgspec.DecodeError as problem:
        raise DataError(f"{path}: not a JSON file of LEAF, or cut short ({problem}); preprocess again") from problem
    if len(content.users) != len(content.num_samples):
        raise DataError(
            f"{path}: {count_of(len(content.users), 'user')} but "
            f"{count_of(len(content.num_samples), 'entry', 'entries')} in num_samples"
        )
    if sorted(content.users) != sorted(content.user_data):
        raise DataError(f"{path}: 'users' and 'user_data' name different writers; preprocess again")
    for user, promised in zip(content.users, content.num_samples, strict=True):
        labels = content.user_data[user].y
        if len(labels) != promised:
            raise DataError(f"{path}: writer {user!r} has {len(labels)} labels but num_samples says {promised}")
        for label in labels:
            if not 0 <= label < CLASSES:
                raise DataError(f"{path}: writer {user!r} has a label {label}, outside 0..{CLASSES - 1}")
    return {user: content.user_data[user] for user in content.users}


def _pixels(path: Path, user: str, writer: Writer) -> Images:
    try:
        rows = msgspec.json.decode(writer.x, type=list[list[float]])
    except msgspec.DecodeError as problem:
        raise DataError(f"{path}: images of writer {user!r} are not lists of numbers ({problem})") from problem
    if len(rows) != len(writer.y):
        raise DataError(
            f"{path}: writer {user!r} has {count_of(len(rows), 'image')} but {count_of(len(writer.y), 'label')}"
        )
    for index, row in enumerate(rows):
        if len(row) != SIDE * SIDE:
            raise DataError(f"{path}: image {index} of writer {user!r} has {len(row)} pixels, not {SIDE * SIDE}")
    values = np.array(rows, np.float64).reshape(-1, 1, SIDE, SIDE)
    if values.size and (float(values.min()) < 0 or float(values.max()) > 1):
        raise DataError(
            f"{path}: writer {user!r} has pixels {values.min():g}..{values.max():g}, LEAF's are 0..1; preprocess again"
        )
    return np.rint(values * 255).astype(np.uint8)
