"""Field types that both roles' files use."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from distreal_edge.errors import ConfigError

__all__ = ["PATTERNS", "Broker", "Fraction", "Identifier", "Number", "Positive", "Section", "Shard", "Text", "Whole"]

_IDENTIFIER: Final = r"\A[A-Za-z0-9_-]{1,64}\Z"
_TEXT: Final = r"\A[^\x00-\x1f\x7f]*\Z"
PATTERNS: Final = {
    _IDENTIFIER: "use 1 to 64 of the characters A-Z a-z 0-9 _ -",
    _TEXT: "control characters cannot stand here",
}
"""What to do about a text that does not match, by pattern."""

Identifier = Annotated[str, msgspec.Meta(pattern=_IDENTIFIER)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096, pattern=_TEXT)]
Whole = Annotated[int, msgspec.Meta(ge=1, le=10**9)]
Number = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
Fraction = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of a configuration file. What must fit together within one is checked when it is made.

    A `ConfigError` raised there starts with the key that is wrong, so that the reader of the file can name its line.
    """


class Broker(Section, frozen=True):
    """Where the MQTT broker listens.

    Without TLS only a broker on this machine is accepted, unless `allow_plaintext` says that the network in between is
    trusted.
    """

    host: Text = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1883
    allow_plaintext: bool = False


class Shard(Section, frozen=True):
    """Which part of a dataset this device holds, when boards share one dataset for an experiment.

    The same `kind`, `shards`, `alpha`, `seed` and `held_back` on every device cut the dataset without overlap;
    `held_back` images are left to the aggregator. `index` is counted from 0.
    """

    kind: Literal["iid", "dirichlet", "writer"]
    shards: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    index: Annotated[int, msgspec.Meta(ge=0, le=99_999)]
    alpha: Annotated[float, msgspec.Meta(gt=0.0, le=1e6)] = 0.5
    seed: Number = 0
    held_back: Number = 0

    def __post_init__(self) -> None:
        """Check that there is such a shard."""
        if self.index >= self.shards:
            raise ConfigError(f"index: {self.index} is too large, {self.shards} shards are counted from 0")
