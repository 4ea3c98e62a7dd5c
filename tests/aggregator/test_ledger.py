from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from distreal_edge.aggregator import Ledger, OpenRound, Store, StoredUpdate
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_what_was_noted_is_there_when_the_ledger_is_opened_again(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.claim(federation="farm", network="abc")
        ledger.open_round(1, b"manifest 1", 100.5, {"pi-1": 30, "pi-2": 40})
        ledger.store_update(StoredUpdate("u2", 1, "pi-2"))
        ledger.store_update(StoredUpdate("u1", 1, "pi-1"))
        ledger.close_round(1, b"record 1")
        ledger.open_round(2, b"manifest 2", 200.5, {"pi-2": 41})
        ledger.store_update(StoredUpdate("u3", 2, "pi-2"))
        for reason in ("late", "shape", "late"):
            ledger.count_refusal(reason)
    with Ledger(path) as ledger:
        ledger.claim(federation="farm", network="abc")
        assert ledger.rounds_done() == 1
        assert ledger.records() == [b"record 1"]
        assert ledger.opened() == OpenRound(2, b"manifest 2", 200.5)
        assert ledger.announced_images(1) == {"pi-1": 30, "pi-2": 40}
        assert ledger.announced_images(2) == {"pi-2": 41}
        assert ledger.updates(1) == [StoredUpdate("u1", 1, "pi-1"), StoredUpdate("u2", 1, "pi-2")]
        assert ledger.updates(2) == [StoredUpdate("u3", 2, "pi-2")]
        assert ledger.has_update("u1", "pi-1")
        assert not ledger.has_update("u1", "pi-2")
        assert not ledger.has_update("u9", "pi-1")
        assert ledger.refusals() == {"late": 2, "shape": 1}


def test_a_new_ledger_has_nothing_done_and_nothing_open(path: Path) -> None:
    with Ledger(path) as ledger:
        assert (ledger.rounds_done(), ledger.opened(), ledger.records(), ledger.refusals()) == (0, None, [], {})


def test_every_write_survives_a_process_that_never_closes(path: Path) -> None:
    ledger = Ledger(path)
    ledger.open_round(1, b"manifest", 1.0, {"pi-1": 5})
    ledger.store_update(StoredUpdate("u1", 1, "pi-1"))
    # What another connection sees is committed; nothing waits in ours.
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT uid FROM updates").fetchall() == [("u1",)]
    other.close()
    ledger.__exit__()


def test_a_device_answers_a_round_once(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.open_round(1, b"", 1.0, {"pi-1": 5})
        ledger.store_update(StoredUpdate("u1", 1, "pi-1"))
        for again in (StoredUpdate("u2", 1, "pi-1"), StoredUpdate("u1", 1, "pi-1")):
            with pytest.raises(StateError, match="pi-1 is not selected for round 1, or has answered it already"):
                ledger.store_update(again)
        assert ledger.updates(1) == [StoredUpdate("u1", 1, "pi-1")]


def test_a_device_that_was_not_selected_has_no_update(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.open_round(1, b"", 1.0, {"pi-1": 5})
        with pytest.raises(StateError, match="pi-2 is not selected"):
            ledger.store_update(StoredUpdate("u1", 1, "pi-2"))


def test_two_devices_may_chance_on_the_same_uid(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.open_round(1, b"", 1.0, {"pi-1": 5, "pi-2": 5})
        ledger.store_update(StoredUpdate("u1", 1, "pi-1"))
        ledger.store_update(StoredUpdate("u1", 1, "pi-2"))
        assert len(ledger.updates(1)) == 2


def test_a_round_is_noted_whole_or_not_at_all(path: Path) -> None:
    with Ledger(path) as ledger:
        with pytest.raises(StateError):
            ledger.open_round(1, b"", 1.0, {"pi-1": 5, "pi-2": None})  # type: ignore[dict-item]
        assert ledger.opened() is None
        ledger.open_round(1, b"", 1.0, {"pi-1": 5})
        with pytest.raises(StateError):
            ledger.open_round(1, b"other", 2.0, {"pi-3": 5})
        assert ledger.opened() == OpenRound(1, b"", 1.0)


@pytest.mark.parametrize("changed", [{"federation": "other"}, {"network": "other"}])
def test_a_ledger_of_somebody_else_is_refused(path: Path, changed: dict[str, str]) -> None:
    claim = {"federation": "farm", "network": "abc"}
    with Ledger(path) as ledger:
        ledger.claim(**claim)
        with pytest.raises(StateError, match=r"belongs to .*, not to other; give this federation a state folder"):
            ledger.claim(**{**claim, **changed})
        ledger.claim(**claim)


ADVICE = "check the disk's space and the folder's owner; if it is damaged, restore the state folder from a backup"


def damage_start(data: bytes) -> bytes:
    return b"this is no database" + data[19:]


def damage_pages(data: bytes) -> bytes:
    return data[:4096] + bytes(len(data) - 4096)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2 + 100]


@pytest.mark.parametrize("damage", [damage_start, damage_pages, cut])
def test_a_damaged_ledger_is_an_error_with_advice(path: Path, damage: Callable[[bytes], bytes]) -> None:
    with Ledger(path) as ledger:
        for number in range(1, 60):
            ledger.open_round(number, b"m" * 500, 1.0, {"pi-1": 5})
            ledger.close_round(number, b"r" * 500)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match=ADVICE):
        Ledger(path)


def test_a_ledger_that_breaks_while_it_is_used_is_an_error_with_advice(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._database.execute("DROP TABLE refusals")
        with pytest.raises(StateError, match=ADVICE):
            ledger.count_refusal("late")


def test_a_folder_that_cannot_hold_a_ledger_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="ledger cannot be used"):
        Ledger(tmp_path / "missing" / "ledger.sqlite")


def test_a_ledger_of_a_later_version_is_left_alone(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._database.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(StateError, match="ledger version 7 is not known"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_ledger_belongs_to_the_thread_that_opened_it(path: Path) -> None:
    failures: list[BaseException] = []

    def use(ledger: Ledger) -> None:
        try:
            ledger.rounds_done()
        except StateError as error:
            failures.append(error)

    with Ledger(path) as ledger:
        thread = threading.Thread(target=use, args=(ledger,))
        thread.start()
        thread.join(10)
    assert "thread" in str(failures[0])


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.save_model(0, b"zero")
    store.save_model(12, b"twelve")
    store.save_update("pi-1", "u1", b"one")
    store.save_update("pi-2", "u1", b"two")
    again = Store(tmp_path / "state")
    assert (again.load_model(0), again.load_model(12)) == (b"zero", b"twelve")
    assert (again.load_update("pi-1", "u1"), again.load_update("pi-2", "u1")) == (b"one", b"two")


def test_dropped_updates_are_gone_and_models_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_model(1, b"model")
    store.save_update("pi-1", "u1", b"one")
    store.drop_updates()
    assert store.load_model(1) == b"model"
    with pytest.raises(StateError, match=r"pi-1\.u1\.update: cannot be read: .*; restore it from a backup"):
        store.load_update("pi-1", "u1")


def test_what_was_never_finished_is_removed_at_the_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_update("pi-1", "u1", b"one")
    leftovers = [tmp_path / "rounds.jsonl.unfinished", tmp_path / "models" / "round-0001.safetensors.unfinished"]
    for path in leftovers:
        path.write_bytes(b"half")
    Store(tmp_path)
    assert not any(path.exists() for path in leftovers)
    assert store.load_update("pi-1", "u1") == b"one"


def test_another_table_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep_table(b"one")
    store.keep_table(b"one")
    with pytest.raises(StateError, match="trains with another table"):
        store.keep_table(b"two")
    assert (tmp_path / "table.json").read_bytes() == b"one"


def test_a_state_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="cannot be used"):
        Store(tmp_path / "state")
