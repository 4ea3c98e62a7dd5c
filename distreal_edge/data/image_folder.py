"""A folder of pictures: root/train/<class>/*.png and root/test/<class>/*.png, jpg or jpeg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.data.dataset import Dataset, Split
from distreal_edge.data.pillow import read_picture
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg"})


def read_image_folder(root: Path, split: Split) -> Dataset | None:
    """Read one split, or return None when `root` has no folder of that name.

    Classes are the lines of root/classes.txt where that exists, else the sorted folder names of train/ (of test/ where
    there is no train/). Pictures come in the order of class, then file name. All must have one size and one number of
    channels. Raises DataError naming the first file that differs.
    """
    folder = root / split
    if not folder.is_dir():
        return None
    classes = _class_names(root, folder)
    unknown = sorted({path.name for path in _folders(folder)} - set(classes))
    if unknown:
        raise DataError(
            f"{folder / unknown[0]}: not a class; the classes are {', '.join(classes)}."
            " Add an empty folder of that name to train/, or a line to classes.txt"
        )
    labelled = [
        (path, label)
        for label, name in enumerate(classes)
        if (folder / name).is_dir()
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in ENDINGS
    ]
    if not labelled:
        raise DataError(f"{folder}: no png or jpg in any folder of it; pictures go to {folder}/<class>/")
    first = read_picture(labelled[0][0])  # H, W, C
    height, width, channels = first.shape
    images = np.empty((len(labelled), channels, height, width), np.uint8)
    for index, (path, _) in enumerate(labelled):
        picture = first if index == 0 else read_picture(path)
        if picture.shape != first.shape:
            raise DataError(
                f"{path}: {_size(picture.shape)}, but {labelled[0][0]} is {_size(first.shape)};"
                " all pictures must have one size and one number of channels"
            )
        images[index] = picture.transpose(2, 0, 1)
    labels = np.array([label for _, label in labelled], np.int64)
    return Dataset(images, labels, len(classes), name=root.resolve().name)


def _class_names(root: Path, folder: Path) -> tuple[str, ...]:
    listed = root / "classes.txt"
    if listed.is_file():
        try:
            lines = listed.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as problem:
            raise DataError(f"{listed}: not UTF-8 text ({problem}); write one class a line") from problem
        names = tuple(line.strip() for line in lines if line.strip())
        if len(set(names)) != len(names):
            raise DataError(f"{listed}: a class is listed twice")
    else:
        training = root / "train"
        names = tuple(sorted(path.name for path in _folders(training if training.is_dir() else folder)))
    if not names:
        raise DataError(f"{folder}: holds no folder; pictures go to {folder}/<class>/")
    return names


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} with {shape[2]} channel{'s' if shape[2] > 1 else ''}"
