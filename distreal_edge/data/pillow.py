"""Open pictures with pillow, which is an extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from distreal_edge.data.dataset import Images


def read_picture(path: Path) -> Images:
    """Read a picture as uint8 [H, W, C], C being 1 for grey pictures and 3 for all others.

    Palettes and CMYK become RGB, transparency is dropped. Raises DataError when pillow is missing, or when the file is
    no picture, is damaged, too large for pillow's own limit, or has more than 8 bits a channel.
    """
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - an extra
    except ImportError as problem:
        raise DataError(
            f"{path}: pictures need pillow; pip install 'distreal-edge[images]' (Debian: apt install python3-pil)"
        ) from problem
    try:
        with Image.open(path) as picture:
            deep = picture.mode.startswith(("I", "F"))
            pixels = np.array(picture.convert("L" if picture.mode in {"1", "L", "LA"} else "RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, EOFError) as problem:
        raise DataError(f"{path}: not a picture that pillow can read ({problem})") from problem
    except OSError as problem:
        raise DataError(f"{path}: cannot be read, or is damaged ({problem}); get it again") from problem
    if deep:
        raise DataError(f"{path}: has more than 8 bits a channel; convert it to 8 bits")
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
