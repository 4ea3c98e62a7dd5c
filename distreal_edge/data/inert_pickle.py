"""Read the arrays out of a pickle without letting it run anything.

The official Python version of CIFAR is pickled, and a pickle may name any callable. Here it may name four: the three
that numpy's arrays are pickled with, under their old and new module names. Even these are not numpy's: they are inert
stand-ins that only remember what they were given, because numpy's own `__setstate__` methods were never meant for
hostile bytes. An array is then rebuilt from what was remembered, if it is a plain one of unsigned bytes.
"""

from __future__ import annotations

import math
import pickle  # only its Unpickler, with find_class closed
import pickletools
import warnings
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from distreal_edge.data.dataset import Images

LARGEST_BYTES: Final = 512 << 20
# CIFAR-100's training file, the largest, has under 300,000 opcodes: a name and two labels for each image.
MOST_OPCODES: Final = 1_000_000

# Everything that a damaged pickle makes the Unpickler raise.
DAMAGED: Final = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    RecursionError,
    SystemError,
)


class Remembered:
    """Remember how a pickle wanted an object made, and the state that it wanted set."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[object, ...]) -> None:
        """Remember a call of `name`."""
        self.name = name
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        """Remember a state instead of applying it."""
        self.state = state


class StandIn:
    """Stand in for one of numpy's names: calling it remembers the call, and nothing about it can be changed."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        """Stand in for `name`."""
        self._name = name

    def __call__(self, *arguments: object) -> Remembered:
        """Remember a call."""
        return Remembered(self._name, arguments)

    def __setstate__(self, state: object) -> NoReturn:
        """Refuse to be changed."""
        raise pickle.UnpicklingError(f"it sets the state of {self._name} itself")


ALLOWED: Final[dict[tuple[str, str], str]] = {
    ("numpy.core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy._core.multiarray", "_reconstruct"): "_reconstruct",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
}


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names something outside ALLOWED."""


class InertUnpickler(pickle.Unpickler):
    """Unpickle plain Python values and remembered arrays; refuse every other name."""

    def find_class(self, module: str, name: str, /) -> StandIn:
        """Return the stand-in for an allowed name. Raises ForbiddenNameError for any other."""
        allowed = ALLOWED.get((module, name))
        if allowed is None:
            raise ForbiddenNameError(f"{module}.{name}")
        return StandIn(allowed)


def read_inert_pickle(path: Path) -> dict[str, object]:
    """Read a pickled dictionary, its keys as str, arrays of unsigned bytes as numpy arrays.

    Strings written by Python 2 come back as bytes. Raises DataError when the file names anything but numpy's arrays,
    is damaged, holds something else than a dictionary, or is larger than 512 MiB or one million opcodes.
    """
    size_bytes = path.stat().st_size
    if size_bytes > LARGEST_BYTES:
        raise DataError(f"{path}: {size_bytes} bytes, the largest pickle accepted is {LARGEST_BYTES}")
    with path.open("rb") as stream:
        try:
            # A damaged text may hold escapes that Python does not know, of which it would warn.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", SyntaxWarning)
                _check_opcodes(stream)
                stream.seek(0)
                value = InertUnpickler(stream, encoding="bytes").load()
        except ForbiddenNameError as problem:
            raise DataError(
                f"{path}: refused, the pickle wants to call {problem}, which CIFAR's files never do;"
                " delete it and get the official archive"
            ) from problem
        except DAMAGED as problem:
            raise DataError(f"{path}: damaged pickle ({problem}); get the file again") from problem
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a pickled {type(value).__name__}, not the dictionary of a CIFAR batch")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: _rebuild(item, path)
        if isinstance(item, Remembered)
        else item
        for key, item in value.items()
        if isinstance(key, bytes | str)
    }


def _check_opcodes(stream: IO[bytes]) -> None:
    """Bound what unpickling can allocate: one byte can make a dictionary, or a memo of four billion entries."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MOST_OPCODES:
            raise pickle.UnpicklingError(f"more than {MOST_OPCODES} opcodes")
        if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"} and int(argument or 0) > count:
            raise pickle.UnpicklingError("a memo index that no batch has")


def _rebuild(array: Remembered, path: Path) -> Images:
    def refuse(why: str) -> NoReturn:
        raise DataError(f"{path}: {why}; the file is damaged or not CIFAR's, get it again")

    if array.name != "_reconstruct" or not isinstance(array.state, tuple) or len(array.state) != 5:
        refuse("an array without contents")
    _, shape, dtype, is_fortran, content = array.state
    if not isinstance(dtype, Remembered) or dtype.name != "dtype" or dtype.arguments[:1] not in ((b"u1",), ("u1",)):
        refuse("an array that is not of unsigned bytes")
    if not isinstance(content, bytes):
        refuse("an array whose contents are not bytes")
    if not isinstance(shape, tuple) or not all(
        isinstance(length, int) and 0 <= length <= LARGEST_BYTES for length in shape
    ):
        refuse("an array whose shape makes no sense")
    if math.prod(shape) != len(content):
        refuse(f"an array of shape {shape} with {count_of(len(content), 'byte')}")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")
