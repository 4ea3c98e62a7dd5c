"""What rounding took from updates, kept durably until it is sent with a later change of the same elements.

Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019). Every bit of it is in one place:
*available* for the next update, or held back by an update on its way, which took what was available `before` and leaves
behind what was lost `after`. Its answer says which of the two becomes available again: refused, it never counted, and
what it took is to be sent anew; counted, what it took has arrived, and what it lost is still to come.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from distreal_edge.device.pieces import elements_of, offsets_of, pieces_of
from distreal_edge.device.survivors import Survivors
from distreal_edge.device.update import Update, encode_update, joined
from distreal_edge.device.update_file import UpdateReader
from distreal_edge.durable import make_folder, quarantine, write_durably
from distreal_edge.errors import FullDiskError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from distreal_edge.device.encoding import Compression, Encoding
    from distreal_edge.network import Plan

__all__ = ["Residuals"]

_log = logging.getLogger(__name__)
_ELEMENTS = 2**16


class _Vector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of float32, one for each trainable element, and its SHA-256."""

    file: str
    digest: str


class _Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an update holds back; `spooled` once its file is known to be in the spool."""

    uid: str
    before: tuple[_Vector, ...]
    after: tuple[_Vector, ...]
    spooled: bool = False


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All there is, for one plan, as of one round."""

    plan: str = ""
    round: int = 0
    available: tuple[_Vector, ...] = ()
    held: tuple[_Held, ...] = ()


class Residuals:
    """A folder of vectors, and one small file that says which of them there are: it is replaced as a whole.

    Used by two threads: one encodes, one settles. Every method raises `StateError` when the disk refuses.
    """

    def __init__(self, folder: Path, *, waiting: Iterable[str] = ()) -> None:
        """Open the folder, which need not be there, and settle what was cut off; `waiting` are uids in the spool."""
        self._folder = folder
        self._index = folder / "residuals.json"
        self._lock = threading.Lock()
        self._state = self._read_state()
        stored = frozenset(waiting)
        for held in self._state.held:
            if held.uid in stored and held.spooled:
                continue
            if held.uid in stored:
                self._keep(self._without(held.uid, more=(msgspec.structs.replace(held, spooled=True),)))
            elif held.spooled:
                _log.warning(
                    "update %s is gone from the spool without an answer; so is what it was rounded by", held.uid
                )
                self.settle(held.uid, counted=None)
            else:  # cut off before it was stored, and so never sent
                self.settle(held.uid, counted=False)
        self._tidy()

    def encode(self, update: Update, plan: Plan, encoding: Encoding, compression: Compression) -> bytes:
        """Return the bytes of an update with what is available for the elements that it trained.

        From then on that is held back: once the update is stored say so with `stored`, and `settle` what became of it.
        """
        taken = self._available(plan, update.header.round)
        if not update.header.images or (encoding == "float32" and not taken):
            return encode_update(update, encoding, compression)
        trained = _trained(update, plan)
        changes = joined(update.changes)
        carried = self._sum(taken, len(changes))
        np.add(changes, carried, out=changes, where=trained)
        shaped = {
            name: changes[begin:end].reshape(plan.parameters[name].shape)
            for name, (begin, end) in offsets_of(plan).items()
        }
        sent = Update(update.header, shaped, update.statistics, update.kept, update.kept_images)
        data = encode_update(sent, encoding, compression)
        # What the aggregator will read, to the bit.
        reader, arrives = UpdateReader(data, plan), np.empty(_ELEMENTS, dtype=np.float32)
        for begin in range(0, len(changes), _ELEMENTS):
            part = slice(begin, min(begin + _ELEMENTS, len(changes)))
            decoded = reader.read(part.start, part.stop, arrives[: part.stop - part.start])
            np.subtract(changes[part], decoded, out=carried[part], where=trained[part])
        uid = update.header.uid
        left = (self._write(uid, carried),) if carried.any() else ()
        with self._lock:
            available = tuple(vector for vector in self._state.available if vector not in taken)
            held = (*self._state.held, _Held(uid, taken, left))
            self._keep(_State(plan.structure, update.header.round, available, held))
        return data

    def stored(self, uid: str) -> None:
        """Note that an update is in the spool: from now on it may be sent."""
        with self._lock:
            for held in self._state.held:
                if held.uid == uid:
                    self._keep(self._without(uid, more=(msgspec.structs.replace(held, spooled=True),)))

    def settle(self, uid: str, *, counted: bool | None) -> None:
        """Note what became of an update, before it is forgotten; None when nobody will ever know.

        What nobody knows of becomes available neither way: to count something twice is worse than to lose less than a
        step of rounding. Does nothing for an update that holds nothing back.

        A full disk does not raise: what is sent must be able to go from the spool, or there would never be room again.
        What became of it is known until the end of the program then; after that it is as if nobody knew.
        """
        with self._lock:
            for held in self._state.held:
                if held.uid == uid:
                    back = () if counted is None else held.after if counted else held.before
                    state = self._without(uid)
                    state = msgspec.structs.replace(state, available=(*state.available, *back))
                    try:
                        self._keep(state)
                    except FullDiskError as error:
                        if not held.spooled and counted is not False:
                            raise  # the next start would take it for one that was never sent
                        _log.warning("%s; what became of update %s is kept in memory", error, uid)
                        self._state = state
                    self._tidy()

    def _available(self, plan: Plan, number: int) -> tuple[_Vector, ...]:
        with self._lock:
            state = self._state
            if state != _State() and (state.plan != plan.structure or number < state.round):
                _log.info("what earlier updates were rounded by belongs to another training, and is forgotten")
                self._keep(_State(plan.structure, number))
                self._tidy()
            return self._state.available

    def _without(self, uid: str, more: tuple[_Held, ...] = ()) -> _State:
        held = tuple(held for held in self._state.held if held.uid != uid)
        return msgspec.structs.replace(self._state, held=(*held, *more))

    def _sum(self, vectors: tuple[_Vector, ...], elements: int) -> NDArray[np.float32]:
        total = np.zeros(elements, dtype=np.float32)
        for vector in vectors:
            try:
                data = (self._folder / vector.file).read_bytes()
            except OSError as error:
                _log.warning("%s: cannot be read and is left out: %s", self._folder / vector.file, error.strerror)
                continue
            if len(data) != 4 * elements or hashlib.sha256(data).hexdigest() != vector.digest:
                _log.warning("%s: is damaged and is left out", self._folder / vector.file)
                continue
            total += np.frombuffer(data, dtype="<f4")
        return total

    def _write(self, uid: str, vector: NDArray[np.float32]) -> _Vector:
        data = vector.astype("<f4", copy=False).tobytes()
        named = _Vector(f"{uid}.residual", hashlib.sha256(data).hexdigest())
        make_folder(self._folder)
        write_durably(self._folder / named.file, data)
        return named

    def _read_state(self) -> _State:
        try:
            return msgspec.json.decode(self._index.read_bytes(), type=_State)
        except FileNotFoundError:
            return _State()
        except OSError as error:
            raise StateError(f"{self._index}: cannot be read: {error.strerror}; check the folder's owner") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            state = self._folder.parent
            moved = quarantine(self._index, state).relative_to(state)
            _log.warning("%s: is damaged; moved to %s; what updates were rounded by is lost", self._index, moved)
            return _State()

    def _keep(self, state: _State) -> None:
        # The one step at which anything changes: files are there before they are named, and go after.
        make_folder(self._folder)
        write_durably(self._index, msgspec.json.encode(state))
        self._state = state

    def _tidy(self) -> None:
        """Remove the files that nothing names."""
        state = self._state
        named = {vector.file for held in state.held for vector in (*held.before, *held.after)}
        named |= {vector.file for vector in state.available}
        try:
            for path in (*self._folder.glob("*.residual"), *self._folder.glob("*.unfinished")):
                if path.name not in named:
                    path.unlink()
        except OSError as error:
            raise StateError(f"{self._folder}: cannot be cleared: {error.strerror}; check the folder's owner") from None


def _trained(update: Update, plan: Plan) -> NDArray[np.bool_]:
    """Return which elements an update trained."""
    survivors = Survivors.of(update.kept, update.kept_images)
    if survivors.whole:
        return np.ones(elements_of(plan), dtype=np.bool_)
    parts = [piece.spread(piece.images(survivors) > 0.0) for piece in pieces_of(plan, _ELEMENTS)]
    return np.concatenate(parts)
