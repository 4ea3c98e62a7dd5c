"""What is kept of a round, in which order, and where an aggregator goes on after whatever stopped it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from distreal_edge.aggregator.closing import Record
from distreal_edge.aggregator.rounds import Open
from distreal_edge.device import decode_update
from distreal_edge.errors import NetworkError, ProtocolError, StateError
from distreal_edge.network import Network
from distreal_edge.transport import Manifest, decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from distreal_edge.aggregator.closing import Closed, Judged
    from distreal_edge.aggregator.ledger import Ledger
    from distreal_edge.aggregator.store import Store
    from distreal_edge.device import Update
    from distreal_edge.network import Plan

__all__ = ["Restored", "keep_round", "restore", "stored_updates"]


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """The state of a federation between two events.

    `model` are the bytes of the newest model's file, `network` is what they say. `opened` and `manifest` are the open
    round's, if one is open, `answered` the devices that answered it, and `announced` how many images each selected
    device holds.
    """

    done: int
    model: bytes
    network: Network
    accuracy: float | None
    opened: Open | None
    manifest: Manifest | None
    answered: tuple[str, ...]
    announced: Mapping[str, int]


def restore(ledger: Ledger, store: Store, *, federation: str, network: Network, table: bytes) -> Restored:
    """Return where to go on; `network` is where to start when nothing was done yet.

    Finishes what was cut off: files that a closed round no longer needs, the list of rounds. Raises `StateError` when
    the state folder is another federation's, or damaged.
    """
    ledger.claim(federation=federation, network=network.digest)
    store.keep_table(table)
    done = ledger.rounds_done()
    opened = ledger.opened()
    if done == 0 and opened is None:
        store.save_model(0, network.to_bytes())
    if opened is None:
        store.drop_updates()
    try:
        manifest = None if opened is None else decode(Manifest, opened.manifest, where=f"round {opened.number}")
        records = [msgspec.json.decode(record, type=Record) for record in ledger.records()]
    except (ProtocolError, msgspec.DecodeError, UnicodeError) as error:
        raise StateError(
            f"{store.folder}: the ledger holds what this program did not write: {error}; restore it from a backup"
        ) from None
    store.write_records(ledger.records())
    model = store.load_model(done)
    expected = manifest.model.digest if manifest is not None else records[-1].model if records else None
    path = store.model_path(done)
    if expected not in {None, hashlib.sha256(model).hexdigest()}:
        raise StateError(f"{path}: it has changed since it was written; restore it from a backup")
    try:
        restored = Network.from_bytes(model, str(path))
    except NetworkError as error:
        raise StateError(f"{error}; restore it from a backup") from None
    return Restored(
        done=done,
        model=model,
        network=restored,
        accuracy=next((record.accuracy for record in reversed(records) if record.accuracy is not None), None),
        opened=None if manifest is None or opened is None else _open(manifest, opened.opened_s),
        manifest=manifest,
        answered=() if opened is None else tuple(update.device for update in ledger.updates(opened.number)),
        announced={} if opened is None else ledger.announced_images(opened.number),
    )


def stored_updates(ledger: Ledger, store: Store, number: int, plan: Plan) -> Iterator[Update]:
    """Yield the updates that count in a round, in a fixed order; raise `StateError` when a file is gone or damaged."""
    for stored in ledger.updates(number):
        path = store.update_path(stored.device, stored.uid)
        try:
            yield decode_update(store.load_update(stored.device, stored.uid), plan)
        except ProtocolError as error:
            raise StateError(
                f"{path}: it has changed since it was written: {error}; restore it from a backup"
            ) from None


def keep_round(ledger: Ledger, store: Store, judged: Judged | None, closed: Closed) -> None:
    """Store what a closed round made; cut off anywhere, a restart closes the same round to the same bits or is past it.

    Files come before the row that says that the round is closed, and what the row makes superfluous goes after it.
    """
    number = closed.record.round
    store.save_model(number, closed.model)
    if judged is not None:
        store.save_latest(judged.network.to_bytes())
    ledger.close_round(number, msgspec.json.encode(closed.record))
    store.write_records(ledger.records())
    store.drop_updates()


def _open(manifest: Manifest, opened_s: float) -> Open:
    return Open(
        manifest.number,
        manifest.selected,
        opened_s,
        manifest.train_until_s,
        manifest.deadline_s,
        manifest.measure_only,
    )
