from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from distreal_edge.aggregator import Decision, Keeping, Ledger, OpenRound, Store, StoredUpdate
from distreal_edge.aggregator.ledger import DamagedLedgerError
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


def damage_start(data: bytes) -> bytes:
    return b"this is no database" + data[19:]


def damage_pages(data: bytes) -> bytes:
    return data[:4096] + bytes(len(data) - 4096)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2 + 100]


def change_a_number(data: bytes) -> bytes:
    """Change what no database can know to be wrong: a record."""
    assert data.count(b"r" * 500) > 1
    return data.replace(b"r" * 500, b"s" * 500, 1)


def change_a_name(data: bytes) -> bytes:
    """Change the text of the schema."""
    return data.replace(b"CREATE TABLE refusals", b"CREATE TABLE refusalS", 1)


@pytest.mark.parametrize("damage", [damage_start, damage_pages, cut, change_a_number, change_a_name])
def test_a_damaged_ledger_is_found_out(path: Path, damage: Callable[[bytes], bytes]) -> None:
    with Ledger(path) as ledger:
        for number in range(1, 60):
            ledger.open_round(number, b"m" * 500, 1.0, {"pi-1": 5})
            ledger.close_round(number, b"r" * 500)
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    with pytest.raises(DamagedLedgerError):
        Ledger(path)


def test_a_ledger_that_lacks_a_row_is_found_out(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.open_round(1, b"m", 1.0, {"pi-1": 5, "pi-2": 6})
        ledger.count_refusal("late")
        ledger.count_refusal("late")
    Ledger(path).__exit__()
    with sqlite3.connect(path) as other:
        other.execute("DELETE FROM selected WHERE device = 'pi-1'")
    other.close()
    with pytest.raises(DamagedLedgerError, match="by half"):
        Ledger(path)


def test_a_ledger_that_breaks_while_it_is_used_is_an_error_with_advice(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._sealed._database.execute("DROP TABLE refusals")
        with pytest.raises(StateError, match="the next start makes it anew"):
            ledger.count_refusal("late")


def test_a_disk_that_is_full_is_no_damage(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._sealed._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StateError, match="check the disk's space") as caught:
            ledger.open_round(1, b"m" * 100_000, 1.0, {})
        assert not isinstance(caught.value, DamagedLedgerError)
        assert ledger.opened() is None


def test_decisions_metrics_and_staleness_are_kept(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.open_round(1, b"m", 1.0, {"pi-1": 5}, "all 1 that are here")
        refused = Decision(2.0, 1, "pi-1", "refused", "shape: fc.bias is [4]")
        ledger.count_refusal("shape", refused)
        for stale in (1, 3, 1):
            ledger.count_refusal("late", stale=stale)
        closed = Decision(3.0, 1, None, "closed", "its deadline has passed")
        ledger.close_round(1, b"r", why=closed, metrics={"averaging_s": 0.5, "answered": 0}, files={"a": (1, "d")})
    with Ledger(path) as ledger:
        assert ledger.decisions(1) == [Decision(1.0, 1, None, "opened", "all 1 that are here"), refused, closed]
        assert ledger.metrics(1) == {"averaging_s": 0.5, "answered": 0.0}
        assert ledger.refusals() == {"shape": 1, "late": 3}
        assert ledger.staleness() == {1: 2, 3: 1}
        assert ledger.files() == {"a": (1, "d")}


def test_whoever_sends_rubbish_all_day_does_not_fill_the_disk_with_decisions(path: Path) -> None:
    with Ledger(path) as ledger, ledger.at_once():
        for number in range(1100):
            ledger.decide(Decision(1.0, 1, "pi-1", "refused", f"form: {number}"))
        ledger.decide(Decision(1.0, 2, "pi-1", "refused", "form: the next round"))
        kept = ledger.decisions(1)
        assert len(kept) == 1000
        assert kept[0].why == "form: 0"
        assert len(ledger.decisions(2)) == 1


def test_what_is_written_at_once_is_written_whole_or_not_at_all(path: Path) -> None:
    def write() -> None:
        with Ledger(path) as ledger, ledger.at_once():
            ledger.claim(federation="farm")
            ledger.open_round(1, b"m", 1.0, {"pi-1": 5})
            ledger.open_round(1, b"again", 1.0, {})

    with pytest.raises(StateError):
        write()
    with Ledger(path) as ledger:
        assert (ledger.identity("federation"), ledger.opened()) == (None, None)


def test_a_lost_update_may_be_sent_again_and_a_given_up_round_opened_again(path: Path) -> None:
    why = Decision(1.0, 1, None, "lost", "damaged")
    with Ledger(path) as ledger:
        ledger.open_round(1, b"m", 1.0, {"pi-1": 5})
        update = StoredUpdate("u1", 1, "pi-1", "abc")
        ledger.store_update(update)
        ledger.lose_update(update, why)
        assert ledger.updates(1) == []
        ledger.store_update(update)
        ledger.give_up_round(1, why)
        assert (ledger.opened(), ledger.updates(1), ledger.announced_images(1)) == (None, [], {})
        ledger.open_round(1, b"other", 2.0, {"pi-2": 5})
        assert ledger.opened() == OpenRound(1, b"other", 2.0)


def test_a_folder_that_cannot_hold_a_ledger_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="ledger cannot be used"):
        Ledger(tmp_path / "missing" / "ledger.sqlite")


def test_a_ledger_of_a_later_version_is_left_alone(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger._sealed._database.execute("PRAGMA user_version = 7")
        ledger._sealed._database.execute("CREATE TABLE news (a)")
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


@pytest.mark.parametrize(
    ("keeping", "kept"),
    [
        (Keeping(newest=3, every=10), [0, 10, 20, 23, 24, 25]),
        (Keeping(newest=1, every=0), [25]),
        (Keeping(newest=100, every=0), list(range(26))),
        (Keeping(newest=2, every=1), list(range(26))),
    ],
)
def test_old_models_are_kept_by_a_stated_policy(tmp_path: Path, keeping: Keeping, kept: list[int]) -> None:
    store = Store(tmp_path)
    for number in range(26):
        store.model_path(number).write_bytes(b"model")
    store.prune_models(keeping)
    assert store.models() == kept


def test_a_state_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="cannot be made"):
        Store(tmp_path / "state")
