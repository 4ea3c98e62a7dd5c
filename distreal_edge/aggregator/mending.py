"""Files of the state folder held against the ledger at the start: what is damaged is moved away, and made good.

Everything here says in one line of the log what was damaged, where it is now, and what follows from it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from distreal_edge.aggregator.ledger import Decision, model_name
from distreal_edge.aggregator.recovery import same_open, write_open
from distreal_edge.aggregator.store import digest_of, file_digest, read_or_none
from distreal_edge.dropout import Table
from distreal_edge.errors import NetworkError, StateError, TableError
from distreal_edge.network import Network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from distreal_edge.aggregator.ledger import Ledger, OpenRound, StoredUpdate
    from distreal_edge.aggregator.store import Store

__all__ = ["mend_latest", "mend_open", "mend_records", "mend_table", "mend_updates", "sound_model"]

_CHANGED = "has changed since it was written"


def mend_table(ledger: Ledger, store: Store, table: bytes) -> None:
    """Keep the federation's table, or raise `StateError` when another one is in use already."""
    path = store.table_path
    here = read_or_none(path)
    known = ledger.identity("table")
    if known is None:
        # A new federation, or a ledger made anew.
        known = table.decode() if here is None or not _is_table(here) else here.decode()
        ledger.claim(table=known)
    if here != known.encode():
        if here is not None or path.exists():
            store.quarantine(path, _CHANGED, "written anew from the ledger")
        store.save_table(known.encode())
    if known.encode() != table:
        raise StateError(f"{path}: this federation trains with another table; give the new one a state folder")


def _is_table(data: bytes) -> bool:
    try:
        Table.from_bytes(data, "table.json")
    except TableError:
        return False
    return True


def mend_records(ledger: Ledger, store: Store) -> None:
    """Make `rounds.jsonl` say what the ledger says. Its last line may be missing, or torn: it is written last."""
    records = ledger.records()
    expected = b"".join(record + b"\n" for record in records)
    found = read_or_none(store.records_path)
    if found == expected:
        return
    certain = len(expected) - len(records[-1]) - 1 if records else 0
    torn = found is not None and len(found) <= len(expected) and found[:certain] == expected[:certain]
    if not torn and (found is not None or store.records_path.exists()):
        store.quarantine(store.records_path, _CHANGED, "written anew from the ledger")
    store.write_records(records)


def mend_open(ledger: Ledger, store: Store, opened: OpenRound | None) -> None:
    """Make the second copy of the open round say what the ledger says."""
    if opened is None:
        store.drop_open()
        return
    announced = ledger.announced_images(opened.number)
    if not same_open(store, opened, announced):
        if store.open_path.exists():
            store.quarantine(store.open_path, _CHANGED, "written anew from the ledger")
        write_open(store, opened, announced)


def sound_model(ledger: Ledger, store: Store, network: Network) -> tuple[bytes, Network]:
    """Return the newest model as a file and as a network; damaged, the newest sound one in its place.

    `network` is where to start when nothing was done yet, and when no model is left at all.
    """
    done, files = ledger.rounds_done(), ledger.files()
    path, name = store.model_path(done), model_name(done)
    if done == 0 and ledger.opened() is None:
        return _begin(ledger, store, network)
    data = read_or_none(path)
    _, expected = files.get(name, (done, ""))
    if data is not None and digest_of(data) == expected:
        return data, Network.from_bytes(data, str(path))
    what = "is gone or cannot be read" if data is None else _CHANGED
    for copy in (read_or_none(store.latest_path), read_or_none(store.next_latest_path), network.to_bytes()):
        if copy is not None and digest_of(copy) == expected:
            store.quarantine(path, what, "written anew from another file with the same model")
            store.save_model(done, copy)
            return copy, Network.from_bytes(copy, str(path))
    number, copy = _older(store, network, files, done)
    if copy is None:
        copy, said = network.to_bytes(), "no sound model is left: the federation begins again with the first one"
    else:
        said = f"goes on with the model after round {number}"
    store.quarantine(path, what, said)
    store.save_model(done, copy)
    ledger.note_file(name, done, digest_of(copy), Decision(time.time(), done, None, "model replaced", said))
    return copy, Network.from_bytes(copy, str(path))


def _begin(ledger: Ledger, store: Store, network: Network) -> tuple[bytes, Network]:
    data = network.to_bytes()
    store.save_model(0, data)
    ledger.note_file(model_name(0), 0, digest_of(data))
    return data, network


def _older(store: Store, network: Network, files: Mapping[str, tuple[int, str]], done: int) -> tuple[int, bytes | None]:
    """Return the newest model before this round that is what was written, and its round."""
    candidates = [(number, store.model_path(number)) for number in store.models() if number < done]
    latest = files.get(store.latest_path.name)
    if latest is not None:
        candidates.append((latest[0], store.latest_path))
    for number, path in sorted(candidates, key=lambda each: each[0], reverse=True):
        data = read_or_none(path)
        noted = files.get(path.name)
        sound = data is not None and noted is not None and digest_of(data) == noted[1]
        if sound and data is not None and _network(data, network) is not None:
            return number, data
    return 0, None


def _network(data: bytes, expected: Network) -> Network | None:
    try:
        found = Network.from_bytes(data, "a model")
    except NetworkError:
        return None
    return found if found.digest == expected.digest else None


def mend_latest(ledger: Ledger, store: Store) -> None:
    """Hold the newest evaluated model's file against the ledger; finish what was cut off."""
    noted = ledger.files().get(store.latest_path.name)
    here, following = read_or_none(store.latest_path), read_or_none(store.next_latest_path)
    if noted is not None and (here is None or digest_of(here) != noted[1]):
        number, digest = noted
        copy = read_or_none(store.model_path(number))
        if following is not None and digest_of(following) == digest:
            store.use_next_latest()
            return
        if copy is not None and digest_of(copy) == digest:
            said = f"written anew from the model after round {number}"
        else:
            copy, said = None, "there is none until the next round is evaluated"
        store.quarantine(store.latest_path, "is gone" if here is None else _CHANGED, said)
        if copy is not None:
            store.save_next_latest(copy)
            store.use_next_latest()
    if following is not None:
        store.next_latest_path.unlink(missing_ok=True)


def mend_updates(ledger: Ledger, store: Store, number: int) -> list[StoredUpdate]:
    """Return the updates of the open round whose files are damaged or gone, after forgetting them."""
    lost = []
    for update in ledger.updates(number):
        path = store.update_path(update.device, update.uid)
        digest = file_digest(path)
        if digest is not None and update.digest in {"", digest}:
            continue
        why = f"its update {'is gone' if digest is None else _CHANGED}; it is asked for it again"
        store.quarantine(path, "is gone" if digest is None else _CHANGED, f"{update.device} is asked for it again")
        ledger.lose_update(update, Decision(time.time(), number, update.device, "update lost", why))
        lost.append(update)
    return lost
