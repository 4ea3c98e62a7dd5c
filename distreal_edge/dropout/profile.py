"""Profiles: what every row of a table took on one board, in seconds and bytes."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from distreal_edge.dropout.draw import check_policy
from distreal_edge.dropout.fields import Batch, Bytes, Digest, Macs, Part, Text, VectorField
from distreal_edge.durable import write_durably
from distreal_edge.errors import ConfigError, StateError, TableError

__all__ = [
    "MAXIMUM_PROFILE_BYTES",
    "PROFILE_SCHEMA_VERSION",
    "Profile",
    "ProfiledMachine",
    "ProfiledRow",
    "ProfiledStep",
    "profile_path",
]

PROFILE_SCHEMA_VERSION: Final = 1
MAXIMUM_PROFILE_BYTES = 32 * 2**20
_MAXIMUM_THREADS: Final = 256
_SHOWN_CHARACTERS: Final = 300

Seconds = Annotated[float, msgspec.Meta(gt=0.0, le=86400.0)]
Celsius = Annotated[float, msgspec.Meta(ge=-273.15, le=1000.0)]
Load = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=_MAXIMUM_THREADS)]


class ProfiledStep(Part, frozen=True):
    """One training step of the profile's `batch` images, with one row, at one number of threads.

    `median_s` and `minimum_s` are of `repeats` steps; `spread` is the distance of their quartiles over the median.
    `peak_bytes` is what the engine held: its arena, and the full network's weights, statistics and momentum.
    """

    median_s: Seconds
    minimum_s: Seconds
    spread: Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
    repeats: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    peak_bytes: Bytes


class ProfiledRow(Part, frozen=True):
    """A row of the table, by its vector and its MACs per image, and a step for each of the profile's thread counts."""

    vector: VectorField
    macs: Macs
    steps: Annotated[tuple[ProfiledStep, ...], msgspec.Meta(min_length=1, max_length=_MAXIMUM_THREADS)]


class ProfiledMachine(Part, frozen=True):
    """The board, and the state it was in.

    Temperatures are the hottest sensor's in degrees Celsius, None where nothing measures them. `load` is the load
    average of the minute before; `others_cores` is how many cores other processes used on average all the while.
    """

    processor: Text
    cores: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    governor: Text | None
    temperature_before_c: Celsius | None
    temperature_after_c: Celsius | None
    load: Load
    others_cores: Load


class _Schema(msgspec.Struct, frozen=True):
    schema: int


class Profile(Part, frozen=True):
    """The seconds and bytes that each row of one table takes on one board, at the thread counts in `threads`.

    `network` is the digest that the table has, `table` the SHA-256 of the table's bytes. `disturbed` is empty, or says
    what disturbed a measurement that was forced.
    """

    schema: Literal[1]
    network: Digest
    table: Digest
    draw: Text
    batch: Batch
    instruction_set: Text
    machine: ProfiledMachine
    disturbed: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)]
    threads: Annotated[tuple[Threads, ...], msgspec.Meta(min_length=1, max_length=_MAXIMUM_THREADS)]
    rows: Annotated[tuple[ProfiledRow, ...], msgspec.Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        """Check what types alone do not say; raise `TableError`."""
        try:
            check_policy(self.draw)
        except ConfigError as error:
            raise TableError(str(error)) from None
        if any(following <= count for count, following in pairwise(self.threads)):
            raise TableError(f"the thread counts {list(self.threads)} do not rise; sort them, each once")
        for number, row in enumerate(self.rows):
            if len(row.steps) != len(self.threads):
                message = f"row {number} has {len(row.steps)} steps for {len(self.threads)} thread counts"
                raise TableError(message)
            for threads, step in zip(self.threads, row.steps, strict=True):
                # `not <=` refuses what is not a number, too, which only a profile made by hand can hold.
                if not 0.0 < step.minimum_s <= step.median_s < math.inf:
                    message = f"row {number} took {step.minimum_s} s at least and {step.median_s} s in the middle"
                    raise TableError(f"{message} with {threads} threads; that cannot be")

    @staticmethod
    def from_bytes(data: bytes, where: str = "profile") -> Profile:
        """Parse a profile from JSON; raise `TableError` that says what is wrong in `where`."""
        if len(data) > MAXIMUM_PROFILE_BYTES:
            raise TableError(f"{where}: more than the {MAXIMUM_PROFILE_BYTES} bytes that a profile may have")
        try:
            schema = msgspec.json.decode(data, type=_Schema).schema
            if schema != PROFILE_SCHEMA_VERSION:
                message = f"schema version {schema} is not known; this program reads version {PROFILE_SCHEMA_VERSION}"
                raise TableError(message)
            return msgspec.json.decode(data, type=Profile)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise TableError(f"{where}: not a profile of a table: {str(error)[:_SHOWN_CHARACTERS]}") from None

    @staticmethod
    def load(path: str | Path) -> Profile:
        """Read a profile from a JSON file; raise `TableError` when it is missing or damaged."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAXIMUM_PROFILE_BYTES + 1)
        except OSError as error:
            raise TableError(f"{path}: cannot read the profile: {error.strerror}") from None
        return Profile.from_bytes(data, str(path))

    def to_bytes(self) -> bytes:
        """Return the profile as JSON that people can read too."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def save(self, path: str | Path) -> None:
        """Write the profile as a JSON file, whole or not at all; raise `TableError` when that cannot be done."""
        try:
            write_durably(Path(path), self.to_bytes())
        except StateError as error:
            raise TableError(str(error)) from None

    def seconds(self, row: int, threads: float, images: int) -> float:
        """Predict the seconds that a step of `images` images takes with row number `row` on so many threads.

        A real number of threads means whole ones of which one gets a part of a core. Between two profiled counts the
        speed, steps a second, is interpolated. Below the least count the time grows as if threads shared the work
        without loss, which is the most that fewer threads can take; above the most no further thread is taken to help.
        Time is in proportion to the images. Without any thread it is infinite.
        """
        if not threads > 0.0:
            return math.inf
        steps = self.rows[row].steps
        above = bisect_left(self.threads, threads)
        if above == 0:
            step_s = steps[0].median_s * self.threads[0] / threads
        elif above == len(self.threads):
            step_s = steps[-1].median_s
        else:
            fewer, more = self.threads[above - 1], self.threads[above]
            share = (threads - fewer) / (more - fewer)
            step_s = 1.0 / ((1.0 - share) / steps[above - 1].median_s + share / steps[above].median_s)
        return step_s * images / self.batch

    def peak_bytes(self, row: int, threads: float, images: int) -> int:
        """Predict the memory of a step of `images` images, in bytes, on the safe side.

        It is that of the next profiled thread count, or of the most threads above it. More images than the profile's
        batch take as much as that many whole batches, fewer take as much as one.
        """
        above = min(bisect_left(self.threads, threads), len(self.threads) - 1)
        return self.rows[row].steps[above].peak_bytes * max(1, math.ceil(images / self.batch))


def profile_path(path: str | Path) -> Path:
    """Return where the profile of the table at `path` lies: beside it, `table.profile.json` for `table.json`."""
    return Path(path).with_name(f"{Path(path).stem}.profile.json")
