"""What the aggregator knows and must never forget: rounds, updates and decisions, beside the files that they name.

Every write is on the disk when its method returns. A model or update file is always written before the row that names
it, so that a row never names a file that is not there.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from distreal_edge.aggregator.sealed import DamagedLedgerError, Sealed
from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["DamagedLedgerError", "Decision", "Ledger", "OpenRound", "StoredUpdate"]

_MOST_DECISIONS: Final = 1000
"""Of one round: whoever sends rubbish all day must not fill the disk with what was thought of it."""


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update that was acknowledged. `digest` is the SHA-256 of its file, empty when nobody knows it."""

    uid: str
    round: int
    device: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round that was announced and not closed; `manifest` is the JSON that was published."""

    number: int
    manifest: bytes
    opened_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided and why, in a round; `device` None: about all of them. `time_s` is Unix time."""

    time_s: float
    round: int
    device: str | None
    what: str
    why: str


class Ledger:
    """The database of one federation; a context manager, for the thread that made it.

    Every method raises `StateError` when the database cannot be read or written, `DamagedLedgerError` when it is
    damaged.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the database, and check all that is in it."""
        self._sealed = Sealed(path)
        self.path = path

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the database."""
        self._sealed.close()

    def at_once(self) -> AbstractContextManager[None]:
        """Write all that is written inside, or none of it."""
        return self._sealed.transaction()

    # -- whose it is ---------------------------------------------------------------------------------------------------

    def claim(self, **identity: str) -> None:
        """Note whose ledger this is, or raise `StateError` when it is somebody else's already."""
        for key, value in identity.items():
            known = self.identity(key)
            if known is None:
                self._sealed.insert("identity", key, value)
            elif known != value:
                raise StateError(
                    f"{self.path.parent}: the state folder belongs to {key} {known[:40]}, not to {value[:40]}; "
                    "give this federation a state folder of its own"
                )

    def identity(self, key: str) -> str | None:
        """Return what was claimed, or None."""
        found = self._sealed.read("SELECT value FROM identity WHERE key = ?", key)
        return found[0][0] if found else None

    # -- rounds --------------------------------------------------------------------------------------------------------

    def open_round(
        self, number: int, manifest: bytes, opened_s: float, images: Mapping[str, int], why: str = ""
    ) -> None:
        """Note that a round is announced, how many images each selected device said it holds, and why these."""
        with self._sealed.transaction():
            self._sealed.insert("rounds", number, manifest, float(opened_s), None)
            for device, count in images.items():
                self._sealed.insert("selected", number, device, count)
            if why:
                self._decide(Decision(opened_s, number, None, "opened", why))

    def close_round(
        self,
        number: int,
        record: bytes,
        *,
        files: Mapping[str, tuple[int, str]] | None = None,
        why: Decision | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Note that a round is closed, with its record as JSON; `files` are noted as by `note_file`."""
        with self._sealed.transaction():
            ((manifest, opened_s),) = self._sealed.read(
                "SELECT manifest, opened_s FROM rounds WHERE number = ?", number
            )
            self._sealed.put("rounds", number, manifest, opened_s, record)
            for name, (after_round, digest) in (files or {}).items():
                self._sealed.put("files", name, after_round, digest)
            if why is not None:
                self._decide(why)
            for name, value in (metrics or {}).items():
                self._sealed.insert("metrics", number, name, float(value))

    def give_up_round(self, number: int, why: Decision) -> None:
        """Forget that a round was opened; it opens again under the same number."""
        with self._sealed.transaction():
            for table, column in (("updates", "round"), ("selected", "round"), ("rounds", "number")):
                self._sealed.delete(table, f"{column} = ?", number)
            self._decide(why)

    def rounds_done(self) -> int:
        """Return the number of the last closed round; 0 before the first."""
        ((number,),) = self._sealed.read("SELECT MAX(number) FROM rounds WHERE record IS NOT NULL")
        return number or 0

    def records(self) -> list[bytes]:
        """Return the records of the closed rounds, in order."""
        rows = self._sealed.read("SELECT record FROM rounds WHERE record IS NOT NULL ORDER BY number")
        return [record for (record,) in rows]

    def opened(self) -> OpenRound | None:
        """Return the round that is open, if one is."""
        rows = self._sealed.read("SELECT number, manifest, opened_s FROM rounds WHERE record IS NULL")
        return OpenRound(*rows[0]) if rows else None

    def announced_images(self, number: int) -> dict[str, int]:
        """Return how many images each device selected for a round said it holds, when it was selected."""
        return dict(self._sealed.read("SELECT device, images FROM selected WHERE round = ?", number))

    def metrics(self, number: int) -> dict[str, float]:
        """Return what was measured in a round, by name."""
        return dict(self._sealed.read("SELECT name, value FROM metrics WHERE round = ?", number))

    # -- updates -------------------------------------------------------------------------------------------------------

    def store_update(self, update: StoredUpdate) -> None:
        """Note that an update's file is stored; raise `StateError` when the device has one in this round already."""
        try:
            self._sealed.insert("updates", update.uid, update.device, update.round, update.digest)
        except StateError as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                message = f"{update.device} is not selected for round {update.round}, or has answered it already"
                raise StateError(f"{self.path}: {message}") from None
            raise

    def lose_update(self, update: StoredUpdate, why: Decision) -> None:
        """Note that an update's file is damaged, so that its device may send another."""
        with self._sealed.transaction():
            self._sealed.delete("updates", "uid = ? AND device = ?", update.uid, update.device)
            self._decide(why)

    def has_update(self, uid: str, device: str) -> bool:
        """Return whether this very update was stored, in whatever round."""
        return bool(self._sealed.read("SELECT 1 FROM updates WHERE uid = ? AND device = ?", uid, device))

    def updates(self, number: int) -> list[StoredUpdate]:
        """Return a round's updates in a fixed order."""
        rows = self._sealed.read(
            "SELECT uid, round, device, digest FROM updates WHERE round = ? ORDER BY device", number
        )
        return [StoredUpdate(*row) for row in rows]

    # -- files ---------------------------------------------------------------------------------------------------------

    def note_file(self, name: str, number: int, digest: str, why: Decision | None = None) -> None:
        """Note the SHA-256 of a file, and the round whose model it is."""
        with self._sealed.transaction():
            self._sealed.put("files", name, number, digest)
            if why is not None:
                self._decide(why)

    def files(self) -> dict[str, tuple[int, str]]:
        """Return the round and the SHA-256 of every file that was noted."""
        return {
            name: (number, digest)
            for name, number, digest in self._sealed.read("SELECT name, round, digest FROM files")
        }

    # -- what was decided ----------------------------------------------------------------------------------------------

    def decide(self, decision: Decision) -> None:
        """Note a decision. Of one round at most 1,000 are kept, the oldest."""
        with self._sealed.transaction():
            self._decide(decision)

    def decisions(self, number: int) -> list[Decision]:
        """Return what was decided in a round, oldest first."""
        rows = self._sealed.read(
            "SELECT time_s, round, device, what, why FROM decisions WHERE round = ? ORDER BY number", number
        )
        return [Decision(*row) for row in rows]

    def count_refusal(self, reason: str, decision: Decision | None = None, *, stale: int | None = None) -> None:
        """Count a refused update under its reason; a late one also under the rounds by which it was (`stale`)."""
        with self._sealed.transaction():
            self._sealed.count("refusals", reason)
            if stale is not None:
                self._sealed.count("staleness", stale)
            if decision is not None:
                self._decide(decision)

    def refusals(self) -> dict[str, int]:
        """Return how many updates were refused, by reason."""
        return dict(self._sealed.read("SELECT reason, count FROM refusals"))

    def staleness(self) -> dict[int, int]:
        """Return how many updates came late, by the number of rounds."""
        return dict(self._sealed.read("SELECT rounds, count FROM staleness"))

    def _decide(self, decision: Decision) -> None:
        ((count, last),) = self._sealed.read(
            "SELECT (SELECT COUNT(*) FROM decisions WHERE round = ?), (SELECT MAX(number) FROM decisions)",
            decision.round,
        )
        if count < _MOST_DECISIONS:
            self._sealed.insert(
                "decisions",
                (last or 0) + 1,
                float(decision.time_s),
                decision.round,
                decision.device,
                decision.what,
                decision.why,
            )


def model_name(number: int) -> str:
    """Return the name under which the model after a round is noted, which is its file's."""
    return f"round-{number:04d}.safetensors"
