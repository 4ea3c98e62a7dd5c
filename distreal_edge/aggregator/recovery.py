"""A ledger that is damaged or gone, made anew from what lies beside it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from distreal_edge.aggregator.closing import Record
from distreal_edge.aggregator.ledger import DamagedLedgerError, Ledger, StoredUpdate, model_name
from distreal_edge.aggregator.store import digest_of, file_digest, read_or_none
from distreal_edge.device import read_update
from distreal_edge.durable import rename_durably
from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.transport import Manifest, decode
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from distreal_edge.aggregator.ledger import OpenRound
    from distreal_edge.aggregator.store import Store
    from distreal_edge.network import Network

__all__ = ["OpenCopy", "open_ledger", "read_open", "write_open"]

_NAME: Final = "ledger.sqlite"
_DIGITS: Final = 64


class OpenCopy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the ledger knows of the open round, for the day when the ledger cannot be read."""

    number: int
    manifest: str
    opened_s: float
    announced: dict[str, int]


def write_open(store: Store, opened: OpenRound, announced: Mapping[str, int]) -> None:
    """Store the second copy of the open round."""
    store.save_open(_encode_open(opened, announced))


def _encode_open(opened: OpenRound, announced: Mapping[str, int]) -> bytes:
    body = msgspec.json.encode(OpenCopy(opened.number, opened.manifest.decode(), opened.opened_s, dict(announced)))
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def same_open(store: Store, opened: OpenRound, announced: Mapping[str, int]) -> bool:
    """Return whether the second copy says what the ledger says."""
    return read_or_none(store.open_path) == _encode_open(opened, announced)


def read_open(store: Store) -> OpenCopy | None:
    """Return the second copy of the open round; None when there is none, or it is damaged or another program's."""
    data = read_or_none(store.open_path) or b""
    digest, body = data[:_DIGITS], data[_DIGITS + 1 :]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    try:
        found = msgspec.json.decode(body, type=OpenCopy)
        decode(Manifest, found.manifest.encode(), where=store.open_path.name)
    except (msgspec.DecodeError, UnicodeDecodeError, ProtocolError):
        return None
    return found


def open_ledger(store: Store, network: Network) -> Ledger:
    """Open the ledger; when it is damaged, or gone from a folder that has models, make it anew.

    What is left of a damaged one is moved to `quarantine/`, and the log says so in one line. Lost with it are the
    answers to updates of closed rounds, the decisions, metrics and counts of refusals.
    """
    path = store.folder / _NAME
    there = path.exists() and path.stat().st_size > 0
    what = "is gone"
    if there:
        try:
            return Ledger(path)
        except DamagedLedgerError as error:
            what = f"is damaged ({str(error).removeprefix(f'{path}: ').partition(';')[0]})"
    elif not store.models():
        return Ledger(path)  # a new federation
    journal = path.with_name(f"{_NAME}-journal")
    if journal.exists():
        store.quarantine(journal, "belongs to a damaged ledger", "it is not used")
    done, opened, updates = _rebuild(store, network)
    found = "no round is open" if opened is None else f"round {opened} is open with {count_of(updates, 'update')}"
    store.quarantine(
        path, what, f"made anew from rounds.jsonl and the files here: {count_of(done, 'round')} done, {found}"
    )
    # Only now, and whole: cut off before this, the next start begins again.
    rename_durably(path.with_name(f"{_NAME}.unfinished"), path)
    return Ledger(path)


def _rebuild(store: Store, network: Network) -> tuple[int, int | None, int]:
    records = _records(store)
    last = records[-1][0].round if records else 0
    opened = read_open(store)
    if opened is not None and opened.number <= last:
        opened = None  # its round is closed
    models = store.models()
    done = opened.number - 1 if opened is not None else max(last, models[-1] if models else 0)
    unfinished = store.folder / f"{_NAME}.unfinished"
    for leftover in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):
        leftover.unlink(missing_ok=True)
    with Ledger(unfinished) as ledger, ledger.at_once():
        for record, line in records:
            if record.round <= done:
                ledger.open_round(record.round, b"", record.started_s, {})
                files = {model_name(record.round): (record.round, record.model)}
                ledger.close_round(record.round, line, files=files)
        if done > last:
            _note_done(ledger, store, done)
        manifest = None if opened is None else decode(Manifest, opened.manifest.encode(), where="open.json")
        updates = [] if opened is None or manifest is None else _updates(store, network, opened, manifest)
        if opened is not None and manifest is not None:
            ledger.note_file(model_name(done), done, manifest.model.digest)
            ledger.open_round(opened.number, opened.manifest.encode(), opened.opened_s, opened.announced)
            for update in updates:
                ledger.store_update(update)
        latest = read_or_none(store.latest_path)
        if latest is not None:
            ledger.note_file(store.latest_path.name, done, digest_of(latest))
    return done, None if opened is None else opened.number, len(updates)


def _records(store: Store) -> list[tuple[Record, bytes]]:
    """Return the closed rounds up to the first that cannot be read."""
    found: list[tuple[Record, bytes]] = []
    for line in (read_or_none(store.records_path) or b"").split(b"\n")[:-1]:
        try:
            record = msgspec.json.decode(line, type=Record)
        except (msgspec.DecodeError, UnicodeDecodeError):
            break
        if found and record.round <= found[-1][0].round:
            break
        found.append((record, line))
    return found


def _note_done(ledger: Ledger, store: Store, done: int) -> None:
    """Note that rounds are done of which nothing is left but a model: their numbers are not used again."""
    model = read_or_none(store.model_path(done))
    digest = "" if model is None else digest_of(model)
    record = Record(
        round=done, started_s=0.0, closed_s=0.0, ceiling=1.0, lr=0.0, selected=(), answered=(), images=0,
        mini_batches=0, macs=0, training_loss=None, evaluated_round=None, evaluated_images=0, accuracy=None, loss=None,
        model=digest,
    )  # fmt: skip
    ledger.open_round(done, b"", 0.0, {})
    ledger.close_round(done, msgspec.json.encode(record), files={model_name(done): (done, digest)})


def _updates(store: Store, network: Network, opened: OpenCopy, manifest: Manifest) -> list[StoredUpdate]:
    found: dict[str, StoredUpdate] = {}
    for path in store.update_files():
        try:
            header = read_update(path, network.plan).header
        except (ProtocolError, StateError):
            continue
        of_round = header.round == opened.number and header.model == manifest.model.digest
        if of_round and header.device in opened.announced and path == store.update_path(header.device, header.uid):
            found[header.device] = StoredUpdate(header.uid, header.round, header.device, file_digest(path) or "")
    return list(found.values())
