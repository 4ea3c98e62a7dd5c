"""What is damaged in the state folder is moved away and made good, and never stops a start."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from distreal_edge.aggregator import Ledger, Open, Record, Store, StoredUpdate
from distreal_edge.aggregator.closing import Closed, Judged
from distreal_edge.aggregator.ledger import Decision, OpenRound
from distreal_edge.aggregator.recovery import open_ledger
from distreal_edge.aggregator.restoring import (
    Restored,
    keep_files,
    keep_open,
    keep_round,
    restore,
    sound_updates,
)
from distreal_edge.device import encode_update
from distreal_edge.errors import StateError
from distreal_edge.network import Network
from distreal_edge.search import uniform_table
from distreal_edge.transport import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass
class State:
    """The state folder of an aggregator that has closed three rounds, and has the fourth open with two updates."""

    folder: Path
    network: Network
    table: bytes
    models: list[bytes]
    latest: bytes
    updates: dict[str, bytes]

    def start(self) -> Restored:
        store = Store(self.folder)
        with open_ledger(store, self.network) as ledger:
            return restore(ledger, store, federation="farm", network=self.network, table=self.table)

    def quarantined(self) -> list[str]:
        folder = self.folder / "quarantine"
        return sorted(path.name.rpartition(".")[0] for path in folder.iterdir()) if folder.exists() else []


def record(number: int, model: bytes) -> Record:
    return Record(
        round=number, started_s=float(number), closed_s=number + 0.5, ceiling=1.0, lr=0.1, selected=("pi-1", "pi-2"),
        answered=("pi-1",), images=10, mini_batches=2, macs=5, training_loss=1.0, evaluated_round=number,
        evaluated_images=9, accuracy=number / 10, loss=1.0, model=hashlib.sha256(model).hexdigest(),
    )  # fmt: skip


@pytest.fixture(scope="session")
def templates() -> dict[str, State]:
    """Return what was made already: every test damages a copy of its own."""
    return {}


@pytest.fixture(params=["latest is another file", "latest is the newest model"])
def state(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    templates: dict[str, State],
    network_of: Any,
    maker_of: Any,
    manifest_of: Any,
    request: pytest.FixtureRequest,
) -> State:
    if request.param not in templates:
        folder = tmp_path_factory.mktemp("template") / "state"
        same = request.param == "latest is the newest model"
        templates[request.param] = make_state(folder, network_of, maker_of, manifest_of, same=same)
    template = templates[request.param]
    shutil.copytree(template.folder, tmp_path / "state")
    return dataclasses.replace(template, folder=tmp_path / "state")


def make_state(folder: Path, network_of: Any, maker_of: Any, manifest_of: Any, *, same: bool) -> State:
    network = network_of("plain")
    table = uniform_table(network, rows=3).to_bytes()
    store = Store(folder)
    models = [network.to_bytes(), *(network_of("plain", seed).to_bytes() for seed in (1, 2, 3))]
    updates: dict[str, bytes] = {}
    why = Decision(1.0, 1, None, "closed", "all have answered")
    with open_ledger(store, network) as ledger:
        restore(ledger, store, federation="farm", network=network, table=table)
        for number in (1, 2, 3):
            noted = OpenRound(number, encode(manifest_of(network, number=number)), float(number))
            keep_open(ledger, store, noted, {"pi-1": 30, "pi-2": 40}, "all")
            closed = Closed(models[number], record(number, models[number]))
            judged = Judged(network_of("plain", number if same else 10 + number), number if same else number - 1, None)
            keep_round(ledger, store, closed, keep_files(store, judged, closed), why, {})
        trained = Network.from_bytes(models[3])
        manifest = manifest_of(trained, number=4, selected=("pi-1", "pi-2"))
        keep_open(ledger, store, OpenRound(4, encode(manifest), 4.0), {"pi-1": 30, "pi-2": 40}, "all")
        maker = maker_of(trained)
        for device in ("pi-1", "pi-2"):
            update = maker.update(maker.log("ordered", 2), device=device, uid=f"u-{device}", round=4)
            updates[device] = encode_update(update)
            store.save_update(device, f"u-{device}", updates[device])
            digest = hashlib.sha256(updates[device]).hexdigest()
            ledger.store_update(StoredUpdate(f"u-{device}", 4, device, digest))
    return State(store.folder, network, table, models, judged.network.to_bytes(), updates)


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: list[Callable[[Path], None]] = [flip, cut, empty]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


def test_an_undamaged_folder_is_left_as_it_is_and_nothing_is_said(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.read_bytes() for path in state.folder.rglob("*") if path.is_file()}
    for _ in range(2):
        restored = state.start()
        assert (restored.done, restored.answered, restored.lost) == (3, ("pi-1", "pi-2"), ())
        assert restored.model == state.models[3]
    assert {path: path.read_bytes() for path in state.folder.rglob("*") if path.is_file()} == before
    assert said(caplog) == []


@pytest.mark.parametrize("damage", [*DAMAGES, lambda path: path.unlink()])
def test_a_damaged_ledger_is_made_anew_and_the_open_round_goes_on(
    state: State, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = state.start()
    damage(state.folder / "ledger.sqlite")
    restored = state.start()
    assert (restored.done, restored.model, restored.answered) == (3, state.models[3], ("pi-1", "pi-2"))
    assert (restored.opened, restored.manifest, restored.announced) == (
        before.opened, before.manifest, before.announced,
    )  # fmt: skip
    assert restored.accuracy == 0.3
    (message,) = said(caplog)
    assert "ledger.sqlite: is " in message
    assert "3 rounds done, round 4 is open with 2 updates" in message
    assert len((state.folder / "rounds.jsonl").read_text().splitlines()) == 3
    caplog.clear()
    assert state.start().answered == ("pi-1", "pi-2")
    assert said(caplog) == []


def test_in_the_first_round_a_damaged_ledger_costs_nothing_either(
    tmp_path: Path, network: Network, manifest_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    table = uniform_table(network, rows=3).to_bytes()
    state = State(tmp_path, network, table, [], b"", {})
    store = Store(tmp_path)
    with open_ledger(store, network) as ledger:
        restore(ledger, store, federation="farm", network=network, table=table)
        noted = OpenRound(1, encode(manifest_of(network)), 1.0)
        keep_open(ledger, store, noted, {"pi-1": 30}, "all")
    before = state.start()
    cut(tmp_path / "ledger.sqlite")
    found = state.start()
    assert (found.opened, found.manifest, found.model) == (before.opened, before.manifest, before.model)
    assert state.quarantined() == ["ledger.sqlite"]
    assert len(said(caplog)) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_ledger_and_list_of_rounds_the_newest_model_tells_how_far_it_was(
    state: State, damage: Callable[[Path], None]
) -> None:
    for name in ("ledger.sqlite", "rounds.jsonl", "open.json"):
        damage(state.folder / name)
    flip(state.folder / "rounds.jsonl", 0) if (state.folder / "rounds.jsonl").stat().st_size else None
    restored = state.start()
    assert (restored.done, restored.model, restored.opened) == (3, state.models[3], None)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_of_rounds_is_written_anew(state: State, damage: Callable[[Path], None]) -> None:
    path = state.folder / "rounds.jsonl"
    before = path.read_bytes()
    damage(path)
    state.start()
    assert path.read_bytes() == before
    flip(path, 30)
    state.start()
    assert path.read_bytes() == before
    assert "rounds.jsonl" in state.quarantined()


def test_a_last_line_that_was_torn_is_written_again_without_a_word(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    path = state.folder / "rounds.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[:-20])
    state.start()
    assert path.read_bytes() == before
    assert said(caplog) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_written_anew(state: State, damage: Callable[[Path], None]) -> None:
    damage(state.folder / "table.json")
    assert state.start().answered == ("pi-1", "pi-2")
    assert (state.folder / "table.json").read_bytes() == state.table
    assert state.quarantined() == ["table.json"]


def test_another_table_is_refused_and_the_one_in_use_stays(state: State) -> None:
    mine, state.table = state.table, uniform_table(state.network, rows=4).to_bytes()
    flip(state.folder / "table.json")
    with pytest.raises(StateError, match="trains with another table"):
        state.start()
    assert (state.folder / "table.json").read_bytes() == mine


@pytest.mark.parametrize("damage", [*DAMAGES, lambda path: path.unlink()])
def test_for_a_damaged_newest_model_the_newest_sound_one_is_used(
    state: State, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(state.folder / "models" / "round-0003.safetensors")
    restored = state.start()
    assert restored.done == 3
    if state.latest == state.models[3]:  # another file has it
        assert restored.model == state.models[3]
        assert restored.answered == ("pi-1", "pi-2")
        return
    # The evaluated model is that after round 2; its round's own file has no statistics in it.
    assert restored.model in {state.models[2], state.latest}
    assert (restored.opened, restored.manifest) == (None, None)  # its updates change a model that is lost
    assert len([name for name in state.quarantined() if name.startswith("u-") or "u-pi" in name]) == 2
    assert any("goes on with the model after round 2" in message for message in said(caplog))
    caplog.clear()
    again = state.start()
    assert (again.done, again.model) == (3, restored.model)
    assert said(caplog) == []


def test_without_any_sound_model_the_federation_begins_again_with_the_first_one(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    for path in [*(state.folder / "models").iterdir(), state.folder / "latest.safetensors"]:
        flip(path)
    restored = state.start()
    assert (restored.done, restored.model) == (3, state.models[0])
    assert any("no sound model is left" in message for message in said(caplog))


def test_an_older_model_that_is_damaged_is_not_needed(state: State) -> None:
    flip(state.folder / "models" / "round-0001.safetensors")
    assert state.start().answered == ("pi-1", "pi-2")


@pytest.mark.parametrize("damage", [*DAMAGES, lambda path: path.unlink()])
def test_a_damaged_update_of_the_open_round_is_asked_for_again(
    state: State, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(state.folder / "updates" / "pi-1.u-pi-1.update")
    restored = state.start()
    assert restored.answered == ("pi-2",)
    assert [(update.device, update.uid) for update in restored.lost] == [("pi-1", "u-pi-1")]
    (message,) = said(caplog)
    assert "pi-1 is asked for it again" in message
    with Ledger(state.folder / "ledger.sqlite") as ledger:
        assert not ledger.has_update("u-pi-1", "pi-1")
        assert ledger.decisions(4)[-1].what == "update lost"


@pytest.mark.parametrize("damage", [*DAMAGES, lambda path: path.unlink()])
def test_an_update_that_is_damaged_when_its_round_closes_is_left_out_with_a_message(
    state: State, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store, lost = Store(state.folder), []
    with open_ledger(store, state.network) as ledger:
        stored = ledger.updates(4)
    damage(store.update_path("pi-1", "u-pi-1"))
    found = list(sound_updates(store, stored, state.network.plan, lost))
    assert [update.header.device for update in found] == ["pi-2"]
    assert [update.device for update in lost] == ["pi-1"]
    (message,) = said(caplog)
    assert "round 4 is averaged without pi-1" in message


@pytest.mark.parametrize("damage", [*DAMAGES, lambda path: path.unlink()])
def test_a_damaged_latest_model_is_written_anew_where_another_file_has_it(
    state: State, damage: Callable[[Path], None]
) -> None:
    path = state.folder / "latest.safetensors"
    damage(path)
    assert state.start().answered == ("pi-1", "pi-2")
    if state.latest == state.models[3]:
        assert path.read_bytes() == state.latest
    else:
        assert not path.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_of_the_open_round_is_written_anew(state: State, damage: Callable[[Path], None]) -> None:
    before = (state.folder / "open.json").read_bytes()
    damage(state.folder / "open.json")
    assert state.start().answered == ("pi-1", "pi-2")
    assert (state.folder / "open.json").read_bytes() == before


def test_a_file_that_is_moved_away_twice_in_a_second_keeps_both(state: State) -> None:
    for _ in range(3):
        flip(state.folder / "table.json")
        state.start()
    assert len(list((state.folder / "quarantine").iterdir())) == 3


@pytest.fixture
def opened(state: State) -> Iterator[Ledger]:
    with Ledger(state.folder / "ledger.sqlite") as ledger:
        yield ledger


def test_a_record_of_another_program_is_an_error(state: State, opened: Ledger) -> None:
    opened.close_round(4, msgspec.json.encode({"round": "four"}))
    opened.__exit__()
    with pytest.raises(StateError, match="what this program did not write"):
        state.start()


def test_the_open_round_is_the_one_that_was_announced(state: State) -> None:
    assert state.start().opened == Open(4, ("pi-1", "pi-2"), 4.0, 1008.0, 1010.0, measure_only=False)
