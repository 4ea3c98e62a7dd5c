"""Field types that both roles' files use."""

from __future__ import annotations

import difflib
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from distreal_edge.data.load import SOURCES
from distreal_edge.errors import ConfigError
from distreal_edge.transport.tls import TlsFiles, check_plaintext

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "PATTERNS",
    "Broker",
    "Fraction",
    "Identifier",
    "Number",
    "Positive",
    "Section",
    "Shard",
    "Text",
    "Whole",
    "check_dataset",
    "check_path",
    "meant",
]

_IDENTIFIER: Final = r"\A[A-Za-z0-9_-]{1,64}\Z"
_TEXT: Final = r"\A[^\x00-\x1f\x7f]*\Z"
PATTERNS: Final = {
    _IDENTIFIER: "use 1 to 64 of the characters A-Z a-z 0-9 _ -",
    _TEXT: "control characters cannot stand here",
}
"""What to do about a text that does not match, by pattern."""
_CLOSE: Final = 0.65
"""How alike two words must be, of 1, for one to be taken for the other: `hostname` is meant to be `host`."""
_HOST: Final = re.compile(r"[^\s/:@\[\]]+")

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


class Broker(Section, frozen=True, omit_defaults=True):
    """Where the MQTT broker listens, and the PEM files with which we and it know each other.

    `ca` is the authority that both trust, `certificate` and `key` are our own. A relative path begins at the
    configuration file's folder. Without them only a broker on this machine is accepted, unless `allow_plaintext` says
    that the network in between is trusted.
    """

    host: Text = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    ca: Text | None = None
    certificate: Text | None = None
    key: Text | None = None
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        """Check that the host is one, that all files are named or none, and that the way may be open to others."""
        if not (_HOST.fullmatch(self.host) or _is_address(self.host)):
            raise ConfigError(
                f"host: {self.host!r} is more than a name or an address; write mqtt://pi.lan:1884 as host = 'pi.lan' "
                "and port = 1884"
            )
        files = {"ca": self.ca, "certificate": self.certificate, "key": self.key}
        given = [name for name, path in files.items() if path is not None]
        missing = [name for name in files if name not in given]
        if given and missing:
            raise ConfigError(f"{given[0]}: TLS needs {' and '.join(missing)} as well")
        for name in given:
            check_path(name, files[name])
        if given and self.allow_plaintext:
            raise ConfigError(
                "allow_plaintext: leave it out beside ca, certificate and key; with them nothing is plain"
            )
        if not given and not self.allow_plaintext:
            try:
                check_plaintext(self.host, allowed=False)
            except ConfigError as error:
                raise ConfigError(f"host: {error}") from None

    @property
    def tcp_port(self) -> int:
        """Where the broker listens: as configured, else the usual port with or without TLS."""
        return self.port or (1883 if self.tls is None else 8883)

    @property
    def tls(self) -> TlsFiles | None:
        """The files for TLS, if it is to be spoken."""
        if self.ca is None or self.certificate is None or self.key is None:
            return None
        return TlsFiles(Path(self.ca).expanduser(), Path(self.certificate).expanduser(), Path(self.key).expanduser())

    def beside(self, folder: Path) -> Broker:
        """Return the same with relative paths beginning at this folder."""
        if self.tls is None:
            return self
        ca, certificate, key = (str(folder / each) for each in (self.tls.ca, self.tls.certificate, self.tls.key))
        return msgspec.structs.replace(self, ca=ca, certificate=certificate, key=key)


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


def meant(given: str, known: Iterable[str]) -> str:
    """Ask whether the nearest of the known words is meant; empty when none is near."""
    small, words = given.lower(), list(known)
    near = difflib.get_close_matches(small, words, n=1, cutoff=_CLOSE)
    near = near or [word for word in words if len(small) > 2 and word.startswith(small)]
    return f"did you mean {near[0]!r}? " if near else ""


def check_dataset(name: str, root: str | None) -> None:
    """Raise `ConfigError` unless there is such a dataset, and enough is said to find it; nothing is read."""
    if name not in SOURCES:
        message = f"name: no dataset is called {name!r}; {meant(name, SOURCES)}choose one of {', '.join(SOURCES)}"
        raise ConfigError(message)
    if root is None and SOURCES[name].needs_root:
        raise ConfigError(f"name: {name} needs root as well, the file or folder to read")
    check_path("root", root)


def check_path(key: str, text: str | None) -> None:
    """Raise `ConfigError` when a path begins in a home folder that nobody knows."""
    try:
        Path(text or "").expanduser()
    except RuntimeError:
        raise ConfigError(f"{key}: {text!r} is in a home folder that is not known; write the whole path") from None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
