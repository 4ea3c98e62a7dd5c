"""What is kept of a round, in which order, and where an aggregator goes on after whatever stopped it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from distreal_edge.aggregator.closing import Record
from distreal_edge.aggregator.ledger import Decision, OpenRound, model_name
from distreal_edge.aggregator.mending import (
    mend_latest,
    mend_open,
    mend_records,
    mend_table,
    mend_updates,
    sound_model,
)
from distreal_edge.aggregator.recovery import write_open
from distreal_edge.aggregator.rounds import Open
from distreal_edge.aggregator.store import digest_of, file_digest
from distreal_edge.device import read_update
from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.transport import Manifest, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from distreal_edge.aggregator.closing import Closed, Judged
    from distreal_edge.aggregator.ledger import Ledger, StoredUpdate
    from distreal_edge.aggregator.store import Store
    from distreal_edge.device import UpdateReader
    from distreal_edge.network import Network, Plan

__all__ = ["Restored", "keep_files", "keep_open", "keep_round", "restore", "sound_updates"]


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """The state of a federation between two events.

    `model` are the bytes of the newest model's file, `network` is what they say. `opened` and `manifest` are the open
    round's, if one is open, `answered` the devices that answered it, and `announced` how many images each selected
    device holds. `lost` are updates of the open round that were acknowledged, and damaged since.
    """

    done: int
    model: bytes
    network: Network
    accuracy: float | None
    opened: Open | None
    manifest: Manifest | None
    answered: tuple[str, ...]
    announced: Mapping[str, int]
    lost: tuple[StoredUpdate, ...] = ()


def restore(ledger: Ledger, store: Store, *, federation: str, network: Network, table: bytes) -> Restored:
    """Return where to go on; `network` is where to start when nothing was done yet.

    Finishes what was cut off, and makes good what is damaged. Raises `StateError` when the state folder is another
    federation's, or another program's.
    """
    ledger.claim(federation=federation, network=network.digest)
    mend_table(ledger, store, table)
    try:
        records = [msgspec.json.decode(record, type=Record) for record in ledger.records()]
        opened = ledger.opened()
        manifest = None if opened is None else decode(Manifest, opened.manifest, where=f"round {opened.number}")
    except (ProtocolError, msgspec.DecodeError, UnicodeError) as error:
        raise StateError(
            f"{store.folder}: the ledger holds what this program did not write: {error}; use the version of "
            "distreal-edge that wrote it, or another state folder"
        ) from None
    mend_records(ledger, store)
    model, restored = sound_model(ledger, store, network)
    if opened is not None and manifest is not None and manifest.model.digest != digest_of(model):
        _give_up(ledger, store, opened.number)
        opened = manifest = None
    lost = () if opened is None else mend_updates(ledger, store, opened.number)
    mend_latest(ledger, store)
    mend_open(ledger, store, opened)
    if opened is None:
        store.drop_updates()
    return Restored(
        done=ledger.rounds_done(),
        model=model,
        network=restored,
        accuracy=next((record.accuracy for record in reversed(records) if record.accuracy is not None), None),
        opened=None if manifest is None or opened is None else _open(manifest, opened.opened_s),
        manifest=manifest,
        answered=() if opened is None else tuple(update.device for update in ledger.updates(opened.number)),
        announced={} if opened is None else ledger.announced_images(opened.number),
        lost=tuple(lost),
    )


def _give_up(ledger: Ledger, store: Store, number: int) -> None:
    why = f"the model that round {number} trains is damaged; the round opens again with another one"
    for update in ledger.updates(number):
        path = store.update_path(update.device, update.uid)
        store.quarantine(path, "changes a model that is damaged", "it is left out")
    ledger.give_up_round(number, Decision(time.time(), number, None, "given up", why))


def sound_updates(
    store: Store, updates: Iterable[StoredUpdate], plan: Plan, lost: list[StoredUpdate]
) -> Iterator[UpdateReader]:
    """Yield these updates in their order; one whose file is damaged or gone is left out, and noted in `lost`."""
    for stored in updates:
        path = store.update_path(stored.device, stored.uid)
        digest = file_digest(path)
        what = "is gone or cannot be read" if digest is None else "has changed since it was written"
        if digest is not None and stored.digest in {"", digest}:
            try:
                update = read_update(path, plan)
            except (ProtocolError, StateError) as error:
                what = f"{what}: {error}"
            else:
                yield update
                continue
        store.quarantine(path, what, f"round {stored.round} is averaged without {stored.device}")
        lost.append(stored)


def keep_open(ledger: Ledger, store: Store, opened: OpenRound, images: Mapping[str, int], why: str) -> None:
    """Store that a round opens; after this everybody may hear of it."""
    write_open(store, opened, images)
    ledger.open_round(opened.number, opened.manifest, opened.opened_s, images, why)


def keep_files(store: Store, judged: Judged | None, closed: Closed) -> dict[str, tuple[int, str]]:
    """Store the models that closing a round made, and return what the ledger is to note of them.

    Nothing uses them before `keep_round`; this may be done in another thread than the ledger's.
    """
    number = closed.record.round
    store.save_model(number, closed.model)
    files = {model_name(number): (number, digest_of(closed.model))}
    if judged is not None:
        latest = judged.network.to_bytes()
        store.save_next_latest(latest)
        files[store.latest_path.name] = (judged.after_round, digest_of(latest))
    return files


def keep_round(
    ledger: Ledger,
    store: Store,
    closed: Closed,
    files: Mapping[str, tuple[int, str]],
    why: Decision,
    metrics: Mapping[str, float],
) -> None:
    """Note that a round is closed; cut off anywhere, a restart closes the same round to the same bits or is past it.

    Files come before the row that says that the round is closed, and what the row makes superfluous goes after it.
    Where a full disk has cut it off it may be tried again.
    """
    record = msgspec.json.encode(closed.record)
    if ledger.rounds_done() < closed.record.round:
        ledger.close_round(closed.record.round, record, files=files, why=why, metrics=metrics)
        if store.latest_path.name in files:
            store.use_next_latest()
        store.append_record(record)
    else:
        mend_latest(ledger, store)
        mend_records(ledger, store)
    store.drop_updates()
    store.drop_open()


def _open(manifest: Manifest, opened_s: float) -> Open:
    return Open(
        manifest.number,
        manifest.selected,
        opened_s,
        manifest.train_until_s,
        manifest.deadline_s,
        manifest.measure_only,
    )
