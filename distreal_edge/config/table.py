"""The table that a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distreal_edge.dropout import Table
from distreal_edge.errors import TableError
from distreal_edge.search import shipped_table, uniform_table

if TYPE_CHECKING:
    from distreal_edge.config.federation import TableChoice
    from distreal_edge.network import Network

__all__ = ["build_table"]


def build_table(choice: TableChoice, network: Network, batch: int) -> Table:
    """Return the table that the configuration names; raise `TableError` when it was made for another network.

    `batch` is that of the training, for which rows of uniform rates count their memory.
    """
    if choice.file is not None:
        where, table = choice.file, Table.load(Path(choice.file).expanduser())
    elif choice.name is not None:
        where, table = choice.name, shipped_table(choice.name)
    else:
        return uniform_table(network, draw=choice.draw, batch=batch, rows=choice.rows, keep_streams=choice.keep_streams)
    try:
        table.check_network(network.structure, network.plan.sizes)
    except TableError as error:
        raise TableError(f"{where}: {error}") from None
    return table
