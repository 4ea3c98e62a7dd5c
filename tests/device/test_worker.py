"""The thread that trains: where it knows from how fast the board is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.device.residuals import Residuals
from distreal_edge.device.spool import Spool
from distreal_edge.device.worker import Worker
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.data import Dataset
    from distreal_edge.device import Trace
    from distreal_edge.dropout import Profile, Table
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest

SECONDS = {1: [0.1, 0.2, 0.3, 0.4], 2: [0.1, 0.15, 0.2, 0.25]}


@pytest.fixture
def trained(
    network: Network,
    table: Table,
    dataset: Dataset,
    make_manifest: Callable[..., Manifest],
    virtual_board: type[Any],
    constant_cores: Callable[[float], Trace],
    tmp_path: Path,
) -> Callable[[Profile | None], tuple[list[float], list[int]]]:
    """Train a round; return what each mini-batch was predicted to take, and with how many threads all work was done."""

    def train(profile: Profile | None) -> tuple[list[float], list[int]]:
        model, rows = network.to_bytes(), table.to_bytes()
        board = virtual_board(constant_cores(2.0), lambda _number: 0.5)
        steps: list[Any] = []
        spool = Spool(tmp_path / "spool")
        residuals = Residuals(tmp_path / "residuals")
        worker = Worker(
            device="pi", dataset=dataset, board=board, spool=spool, residuals=residuals, report=steps.append,
            profile=profile,
        )  # fmt: skip
        worker.start(make_manifest(model=model, table=rows), model, rows)
        worker.join(60.0)
        ended = worker.finished.get_nowait()
        assert ended.uid in spool.waiting(), ended.reason
        return [step.predicted_s for step in steps], board.threads

    return train


def test_with_a_profile_of_the_table_nothing_is_measured_first(
    trained: Callable[[Profile], tuple[list[float], list[int]]], profile_of: Callable[..., Profile], table: Table
) -> None:
    predicted, threads = trained(profile_of(table, SECONDS))
    assert predicted[0] == pytest.approx(0.25)  # the full network, by the profile, on two threads
    assert threads == [2] * len(predicted)


def test_without_one_two_rows_are_measured_first(
    trained: Callable[[None], tuple[list[float], list[int]]],
) -> None:
    predicted, threads = trained(None)
    assert predicted[0] == pytest.approx(0.25)  # half a second of one core, on two
    assert threads == [1] * 6 + [2] * len(predicted)


def test_a_profile_of_another_table_is_told_and_not_used(
    trained: Callable[[Profile], tuple[list[float], list[int]]],
    profile_of: Callable[..., Profile],
    row_table: Callable[..., Table],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        _, threads = trained(profile_of(row_table([1, 2, 3, 4]), SECONDS))
    assert threads[:6] == [1] * 6
    (warning,) = caplog.messages
    assert "the profile belongs to the table" in warning
    assert warning.endswith("two of its rows are measured instead")


@pytest.mark.parametrize(("place", "step"), [(Spool, "add"), (Residuals, "stored")])
def test_an_update_waits_for_room_on_a_full_disk(
    trained: Callable[[None], tuple[list[float], list[int]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: type,
    step: str,
) -> None:
    take, full = getattr(place, step), [True] * 3

    def take_when_there_is_room(self: Any, *arguments: Any) -> Any:
        if full:
            full.pop()
            raise StateError("spool: cannot be written: No space left on device; check the disk's space")
        return take(self, *arguments)

    monkeypatch.setattr(place, step, take_when_there_is_room)
    trained(None)
    assert not full
    assert caplog.text.count("No space left on device") == 1
    assert "tried again until the round closes" in caplog.text
