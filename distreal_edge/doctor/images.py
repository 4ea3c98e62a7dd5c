"""Judge whether the images are there and can be read."""

from __future__ import annotations

from dataclasses import dataclass

from distreal_edge.doctor.finding import Finding
from distreal_edge.words import count_of

__all__ = ["ImagesReading", "judge_images"]


@dataclass(frozen=True, slots=True)
class ImagesReading:
    """What was read of a dataset: how many `images`, or how it failed; `unfinished`: it takes long, and was left."""

    name: str
    images: int = 0
    failure: str = ""
    unfinished: bool = False


def judge_images(reading: ImagesReading) -> Finding:
    """Say whether there are at least two images, which is what training needs."""
    if reading.unfinished:
        return Finding("images", f"{reading.name}: there, and still being read when we stopped looking")
    if reading.failure:
        return Finding("images", reading.failure, "see docs/data.md, and name and root in the configuration")
    if reading.images < 2:
        return Finding(
            "images",
            f"{reading.name}: we have {count_of(reading.images, 'image')}",
            "training needs 2 images at least: add some, or choose another index under [data.shard]",
        )
    return Finding("images", f"{reading.name}: {reading.images} images")
