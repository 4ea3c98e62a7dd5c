"""How the changes of an update are written down in fewer bytes, and read back a block at a time.

`docs/protocol.md` specifies it. Rounding is to the nearest, not at random: what is lost is kept on the device and sent
with the next change of the same element, so that nothing is lost on average either way, and the nearest loses less.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import zstandard

from distreal_edge.errors import ProtocolError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from distreal_edge.network.operations import Shape

__all__ = [
    "BLOCK",
    "DTYPES",
    "Compression",
    "Encoding",
    "Scales",
    "dequantise",
    "pack",
    "quantise",
    "scale_lengths",
    "unpack_block",
]

Encoding = Literal["float32", "float16", "int8"]
Compression = Literal["none", "zstd"]

BLOCK: Final = 2**15
"""Elements that are compressed together: 128 KiB of float32, which is what zstd looks at at once anyway."""
DTYPES: Final[dict[str, tuple[str, np.dtype[np.generic]]]] = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "int8": ("I8", np.dtype("i1")),
}
"""The name in a safetensors file and the type in memory, by encoding."""
_LEVEL: Final = 3
_LARGEST_FLOAT16: Final = np.float32(65504.0)
_LARGEST_SCALE: Final = np.float32(np.finfo(np.float32).max / 128)
_SMALLEST_SCALE: Final = np.float32(2.0**-100)


def scale_lengths(shapes: Iterable[Shape]) -> NDArray[np.int64]:
    """Return how many elements each scale of `int8` is for: a row of a matrix or a filter's kernels; a whole vector."""
    lengths: list[int] = []
    for shape in shapes:
        rows = shape[0] if len(shape) > 1 else 1
        lengths += [prod(shape) // rows] * rows
    return np.array(lengths, dtype=np.int64)


def quantise(
    vector: NDArray[np.float32], encoding: Encoding, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """Return a finite vector in an encoding, and its scales: none but for `int8`, where they are float32 `[rows]`.

    Zero stays zero. What is too large for float16 becomes its largest number.
    """
    if encoding == "float32":
        return vector, np.zeros(0, dtype=np.float32)
    if encoding == "float16":
        return np.clip(vector, -_LARGEST_FLOAT16, _LARGEST_FLOAT16).astype(np.float16), np.zeros(0, dtype=np.float32)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    largest = np.maximum(np.maximum.reduceat(vector, starts), -np.minimum.reduceat(vector, starts))
    scales = np.minimum(largest / np.float32(127), _LARGEST_SCALE).astype(np.float32)
    # A row this small becomes all zeros: below, some processors round products to zero, and digests would differ.
    scales[scales < _SMALLEST_SCALE] = 0
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    values = vector * np.repeat(inverse, lengths)
    np.rint(values, out=values)
    np.clip(values, -127, 127, out=values)
    return values.astype(np.int8), scales


class Scales:
    """The scales of `int8`, to be asked for any part of the vector."""

    def __init__(self, scales: NDArray[np.float32], lengths: NDArray[np.int64]) -> None:
        """Take a scale for each row of so many elements."""
        self._scales = scales
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def of(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return the scale of every element from `begin` to `end`."""
        first = int(np.searchsorted(self._starts, begin, side="right")) - 1
        last = int(np.searchsorted(self._starts, end, side="left"))
        counts = np.diff(np.clip(self._starts[first : last + 1], begin, end))
        return np.repeat(self._scales[first:last], counts)


def dequantise(
    values: NDArray[np.generic], scales: Scales | None, begin: int, out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Write a part of an encoded vector, which begins at element `begin`, into `out` as float32; return `out`."""
    if scales is None:
        np.copyto(out, values)
    else:
        np.multiply(values, scales.of(begin, begin + len(values)), out=out)
    return out


def pack(values: NDArray[np.generic]) -> tuple[bytes, list[int]]:
    """Compress an encoded vector, each block by itself; return the frames one after the other, and their sizes."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False)
    frames = [compressor.compress(block) for block in _blocks(values)]
    return b"".join(frames), [len(frame) for frame in frames]


def _blocks(values: NDArray[np.generic]) -> Iterable[memoryview]:
    for begin in range(0, len(values), BLOCK):
        yield np.ascontiguousarray(values[begin : begin + BLOCK]).data.cast("B")


def unpack_block(frame: bytes, unpacked_bytes: int) -> bytes:
    """Decompress a block; raise `ProtocolError` unless it says that it holds just so much, and does.

    Nothing is taken for what it would hold before that is known, and never more than that.
    """
    try:
        # Asked first, because the library takes what a frame says that it needs.
        stated = zstandard.frame_content_size(frame)
        if stated != unpacked_bytes:
            raise ProtocolError(f"size: a packed block of {count_of(stated, 'byte')}, it must be {unpacked_bytes}")
        data: bytes = zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=unpacked_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ProtocolError(f"form: a packed block cannot be read: {str(error)[:100]}") from None
    if len(data) != unpacked_bytes:
        raise ProtocolError(f"size: a packed block of {count_of(len(data), 'byte')}, it must be {unpacked_bytes}")
    return data
