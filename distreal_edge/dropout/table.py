"""Rows and tables: the Pareto-optimal dropout vectors that a device chooses from."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from distreal_edge.dropout.draw import check_policy
from distreal_edge.dropout.fields import Batch, Bytes, Digest, Macs, Part, Sizes, Text, VectorField
from distreal_edge.dropout.profile import Profile, profile_path
from distreal_edge.dropout.vectors import check_vector
from distreal_edge.durable import write_durably
from distreal_edge.errors import ConfigError, DataError, StateError, TableError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAXIMUM_ROWS", "MAXIMUM_TABLE_BYTES", "SCHEMA_VERSION", "Row", "Table"]

SCHEMA_VERSION: Final = 1
MAXIMUM_ROWS = 256
_SHOWN_CHARACTERS = 300
MAXIMUM_TABLE_BYTES = 16 * 2**20
_PROFILE_AGAIN: Final = "run `distreal-edge profile` again, or remove the file"


class Row(Part, frozen=True):
    """A dropout vector with what it costs and what it is worth.

    `macs` are those of one training step per image; `peak_bytes` is the memory of one step at the table's batch size;
    `score` is the convergence speed, higher is better, comparable within one table only.
    """

    vector: VectorField
    macs: Macs
    peak_bytes: Bytes
    score: float


class _Schema(msgspec.Struct, frozen=True):
    schema: int


class _Document(Part, frozen=True):
    # What a table's bytes hold.
    schema: Literal[1]
    network: Digest
    sizes: Sizes
    draw: Text
    data: Text
    origin: Text
    batch: Batch
    rows: Annotated[tuple[Row, ...], msgspec.Meta(min_length=1, max_length=MAXIMUM_ROWS)]


class Table(_Document, frozen=True):
    """The rows a device chooses from: cheapest first, the full network last, cost and score rising together.

    A table belongs to one plan (`network`, its `structure`, and `sizes`, the filters of each group), one draw
    policy and one kind of data (`data`, free text); `origin` says how it was filled. `profile` is what the rows take on
    one board. It never goes into the table's bytes, because tables travel to other boards.
    """

    profile: Profile | None = None

    def __post_init__(self) -> None:
        """Check what types alone do not say; raise `TableError`."""
        try:
            check_policy(self.draw)
        except ConfigError as error:
            raise TableError(str(error)) from None
        for number, row in enumerate(self.rows):
            try:
                check_vector(row.vector, self.sizes)
            except DataError as error:
                message = f"row {number}: {error}"
                raise TableError(message) from None
            if not math.isfinite(row.score):
                message = f"row {number} scores {row.score}; a score is a finite number"
                raise TableError(message)
            if number and row.macs <= self.rows[number - 1].macs:
                message = f"row {number} costs {row.macs} MACs, not more than row {number - 1}; sort the rows by cost"
                raise TableError(message)
            if number and not row.score > self.rows[number - 1].score:
                message = f"row {number} scores {row.score}, not more than cheaper row {number - 1}; remove it"
                raise TableError(message)
        if any(self.rows[-1].vector):
            message = "the last row must be the full network: every rate 0"
            raise TableError(message)
        if self.profile is not None:
            self._check_profile(self.profile)

    @staticmethod
    def from_bytes(data: bytes, where: str = "table") -> Table:
        """Parse a table from JSON; raise `TableError` that says what is wrong in `where`."""
        if len(data) > MAXIMUM_TABLE_BYTES:
            message = f"{where}: more than the {MAXIMUM_TABLE_BYTES} bytes that a table may have"
            raise TableError(message)
        try:
            schema = msgspec.json.decode(data, type=_Schema).schema
            if schema != SCHEMA_VERSION:
                message = f"schema version {schema} is not known; this program reads version {SCHEMA_VERSION}"
                raise TableError(message)
            return Table(*msgspec.structs.astuple(msgspec.json.decode(data, type=_Document)))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            message = f"{where}: not a table of dropout vectors: {str(error)[:_SHOWN_CHARACTERS]}"
            raise TableError(message) from None

    @staticmethod
    def load(path: str | Path, *, profiled: bool = True) -> Table:
        """Read a table from a JSON file, and the profile beside it when there is one (`profile_path`).

        Raises `TableError` when the table is missing or damaged, and when the profile is damaged or another table's.
        Without `profiled` nobody looks for a profile.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAXIMUM_TABLE_BYTES + 1)
        except OSError as error:
            message = f"{path}: cannot read the table: {error.strerror}"
            raise TableError(message) from None
        table = Table.from_bytes(data, str(path))
        beside = profile_path(path)
        if not profiled or not beside.exists():
            return table
        try:
            profile = Profile.load(beside)
        except TableError as error:
            raise TableError(f"{error}; {_PROFILE_AGAIN}") from None
        try:
            return msgspec.structs.replace(table, profile=profile)
        except TableError as error:
            raise TableError(f"{beside}: {error}; {_PROFILE_AGAIN}") from None

    @property
    def digest(self) -> str:
        """The SHA-256 of the table's bytes, by which its profile knows it; the profile itself is not part of it."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the table, without its profile, as JSON that people can read too."""
        fields = (getattr(self, name) for name in _Document.__struct_fields__)
        return msgspec.json.format(msgspec.json.encode(_Document(*fields)), indent=1)

    def save(self, path: str | Path) -> None:
        """Write the table as a JSON file, whole or not at all; raise `TableError` when that cannot be done."""
        try:
            write_durably(Path(path), self.to_bytes())
        except StateError as error:
            raise TableError(str(error)) from None

    def check_network(self, structure: str, sizes: Sequence[int]) -> None:
        """Raise `TableError` unless this table was made for the plan with this structure and these group sizes."""
        if self.network != structure or self.sizes != tuple(sizes):
            message = (
                f"the table belongs to the network {self.network[:12]}, not to {structure[:12]}; "
                "fill a table for this network"
            )
            raise TableError(message)

    def under(self, ceiling: float) -> tuple[Row, ...]:
        """Return the rows whose MACs are at most this share of the full network's, and always the cheapest row.

        The share is exact to one part in 10^9, so that a ceiling which is a row's own share lets that row through.
        """
        limit = ceiling * self.rows[-1].macs * (1.0 + 1e-9)
        return tuple(row for number, row in enumerate(self.rows) if number == 0 or row.macs <= limit)

    def best(
        self,
        *,
        seconds: float,
        threads: float = 1.0,
        memory_bytes: float | None = None,
        ceiling: float = 1.0,
        batch: int | None = None,
        seconds_per_mac: float | None = None,
    ) -> Row:
        """Return the row with the best score that fits, or the cheapest one when none does.

        A row fits when a step of `batch` images (None: as many as the table's) takes at most `seconds` and
        `memory_bytes` on so many threads, and its MACs are under the round's `ceiling`. Time and memory are those of
        the profile: `Profile.seconds` and `Profile.peak_bytes` say what holds for thread counts and batches that were
        not measured. With `seconds_per_mac`, measured on one core, they are `macs * batch * seconds_per_mac / threads`
        and the row's own `peak_bytes` instead. Raises `ConfigError` when there is neither, and for a batch or a speed
        that no step has, with which every row would fit.
        """
        images = self.batch if batch is None else batch
        if images < 1:
            raise ConfigError(f"batch={images}: a step has at least one image")
        if seconds_per_mac is not None and not seconds_per_mac > 0.0:
            raise ConfigError(f"seconds_per_mac={seconds_per_mac}: multiplying takes more than no time")
        profile = self.profile
        allowed = self.under(ceiling)
        if seconds_per_mac is not None:
            in_time = [row.macs * images * seconds_per_mac <= seconds * threads for row in allowed]
            peak_bytes = [row.peak_bytes for row in allowed]
        elif profile is not None:
            in_time = [profile.seconds(row, threads, images) <= seconds for row in range(len(allowed))]
            peak_bytes = [profile.peak_bytes(row, threads, images) for row in range(len(allowed))]
        else:
            raise ConfigError(
                "nobody knows yet how fast this board is: run `distreal-edge profile` on the table's file and load it "
                "again, or give seconds_per_mac"
            )
        fitting = [
            row
            for row, fast, peak in zip(allowed, in_time, peak_bytes, strict=True)
            if fast and (memory_bytes is None or peak <= memory_bytes)
        ]
        return max(fitting, key=lambda row: row.score, default=self.rows[0])

    def _check_profile(self, profile: Profile) -> None:
        # The digest says it all; the rest holds a file to its word.
        rows = [(row.vector, row.macs) for row in profile.rows]
        if (
            profile.table != self.digest
            or (profile.network, profile.draw) != (self.network, self.draw)
            or rows != [(row.vector, row.macs) for row in self.rows]
        ):
            message = f"the profile belongs to the table {profile.table[:12]}, not to {self.digest[:12]}"
            raise TableError(message)
