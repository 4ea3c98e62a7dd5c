"""The fields that tables and profiles share, with their bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["Batch", "Bytes", "Digest", "Macs", "Part", "Sizes", "Text", "VectorField"]

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=200)]
Sizes = Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=65536)], ...], msgspec.Meta(max_length=4096)]
VectorField = Annotated[tuple[Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)], ...], msgspec.Meta(max_length=4096)]
Macs = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Batch = Annotated[int, msgspec.Meta(ge=1, le=65536)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a table's or a profile's file."""
