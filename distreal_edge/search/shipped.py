"""The tables that come with the package, found by `distreal-edge search` before it was released."""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from distreal_edge.dropout import Table
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["shipped_table", "shipped_tables"]

_SUFFIX: Final = ".json"


def shipped_tables() -> tuple[str, ...]:
    """Return the names of the tables inside the package, sorted: `<network>-<data>-<draw>`."""
    names = (entry.name.removesuffix(_SUFFIX) for entry in _folder().iterdir() if entry.name.endswith(_SUFFIX))
    # Not a profile of this board, which somebody may have measured beside a table.
    return tuple(sorted(name for name in names if "." not in name))


def shipped_table(name: str) -> Table:
    """Return a table inside the package; raise `ConfigError` that names the nearest one when there is none.

    It fits the network in its name at that network's own shape of images and number of classes, whatever the
    preprocessing and the weights: `Table.check_network` tells.
    """
    known = shipped_tables()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"no table of the package is called {name!r}; {hint}there are {', '.join(known)}"
        raise ConfigError(message)
    file = name + _SUFFIX
    return Table.from_bytes((_folder() / file).read_bytes(), file)


def _folder() -> Traversable:
    return files("distreal_edge") / "tables"
