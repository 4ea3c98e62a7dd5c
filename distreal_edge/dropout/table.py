"""Rows and tables: the Pareto-optimal dropout vectors that a device chooses from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from distreal_edge.dropout.draw import check_policy
from distreal_edge.dropout.vectors import check_vector
from distreal_edge.errors import ConfigError, DataError, TableError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAXIMUM_ROWS", "MAXIMUM_TABLE_BYTES", "SCHEMA_VERSION", "Row", "Table"]

SCHEMA_VERSION: Final = 1
MAXIMUM_ROWS = 256
_SHOWN_CHARACTERS = 300
MAXIMUM_TABLE_BYTES = 16 * 2**20

Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Rate = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Text = Annotated[str, msgspec.Meta(max_length=200)]
Sizes = Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=65536)], ...], msgspec.Meta(max_length=4096)]


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dropout vector with what it costs and what it is worth.

    `macs` are those of one training step per image; `peak_bytes` is the memory of one step at the table's batch size;
    `score` is the convergence speed, higher is better, comparable within one table only.
    """

    vector: Annotated[tuple[Rate, ...], msgspec.Meta(max_length=4096)]
    macs: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    peak_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    score: float


class _Schema(msgspec.Struct, frozen=True):
    schema: int


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rows a device chooses from: cheapest first, the full network last, cost and score rising together.

    A table belongs to one plan (`network`, its `structure`, and `sizes`, the filters of each group), one draw
    policy and one kind of data (`data`, free text); `origin` says how it was filled.
    """

    schema: Literal[1]
    network: Digest
    sizes: Sizes
    draw: Text
    data: Text
    origin: Text
    batch: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    rows: Annotated[tuple[Row, ...], msgspec.Meta(min_length=1, max_length=MAXIMUM_ROWS)]

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
            return msgspec.json.decode(data, type=Table)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            message = f"{where}: not a table of dropout vectors: {str(error)[:_SHOWN_CHARACTERS]}"
            raise TableError(message) from None

    @staticmethod
    def load(path: str | Path) -> Table:
        """Read a table from a JSON file; raise `TableError` when it is missing or damaged."""
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAXIMUM_TABLE_BYTES + 1)
        except OSError as error:
            message = f"{path}: cannot read the table: {error.strerror}"
            raise TableError(message) from None
        return Table.from_bytes(data, str(path))

    def to_bytes(self) -> bytes:
        """Return the table as JSON that people can read too."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def save(self, path: str | Path) -> None:
        """Write the table as a JSON file; raise `TableError` when that cannot be done."""
        try:
            Path(path).write_bytes(self.to_bytes())
        except OSError as error:
            raise TableError(f"{path}: cannot write the table: {error.strerror}") from None

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
        seconds_per_mac: float,
        threads: float = 1.0,
        memory_bytes: float | None = None,
        ceiling: float = 1.0,
        batch: int | None = None,
    ) -> Row:
        """Return the row with the best score that fits, or the cheapest one when none does.

        A row fits when `macs * batch * seconds_per_mac / threads` is at most `seconds`, its `peak_bytes` at most
        `memory_bytes`, and its MACs under the round's `ceiling`. `seconds_per_mac` is measured on one core.
        """
        images = self.batch if batch is None else batch
        fitting = [
            row
            for row in self.under(ceiling)
            if row.macs * images * seconds_per_mac <= seconds * threads
            and (memory_bytes is None or row.peak_bytes <= memory_bytes)
        ]
        return max(fitting, key=lambda row: row.score, default=self.rows[0])
