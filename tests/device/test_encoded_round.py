from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.device import Residuals, Spool, read_update
from distreal_edge.device.pieces import elements_of
from distreal_edge.device.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.data import Dataset
    from distreal_edge.device import Trace, UpdateReader
    from distreal_edge.dropout import Table
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_device_writes_its_update_down_as_the_round_asks_and_keeps_what_that_takes(
    network: Network,
    table: Table,
    dataset: Dataset,
    make_manifest: Callable[..., Manifest],
    virtual_board: type[Any],
    constant_cores: Callable[[float], Trace],
    tmp_path: Path,
    encoding: str,
    compression: str,
) -> None:
    model, rows = network.to_bytes(), table.to_bytes()
    spool, residuals = Spool(tmp_path / "spool"), Residuals(tmp_path / "residuals")
    asked = {"encoding": encoding, "compression": compression}

    def train(number: int, **training: str) -> UpdateReader:
        worker = Worker(
            device="pi", dataset=dataset, board=virtual_board(constant_cores(4.0), lambda _number: 0.1), spool=spool,
            residuals=residuals, report=lambda _step: None,
        )  # fmt: skip
        worker.start(make_manifest(number, model=model, table=rows, training=training), model, rows)
        worker.join(60.0)
        uid = worker.finished.get(timeout=1.0).uid
        assert uid is not None
        path = spool.path(uid)
        assert path is not None
        reader = read_update(path, network.plan)
        residuals.settle(uid, counted=True)
        return reader

    first = train(1, **asked)
    assert (first.stated.encoding, first.stated.compression) == (encoding, compression)
    exact, plain = (np.empty(elements_of(network.plan), np.float32) for _ in range(2))
    # The same round again, as it would be without rounding: what comes on top is what was lost the first time.
    lost = residuals._sum(residuals._state.available, len(exact))
    first.read(0, len(exact), exact)
    again = train(1)
    again.read(0, len(plain), plain)
    assert lost.any() == (encoding != "float32")
    np.testing.assert_allclose(plain, exact + 2 * lost, atol=1e-6)
