"""The folder of a simulation: whose it is, and where each run stands."""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from distreal_edge.durable import held_folder, make_folder, quarantine, write_durably
from distreal_edge.errors import ConfigError, StateError
from distreal_edge.simulate.records import Checkpoint  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.simulate.scenario import Scenario

__all__ = ["Folder", "open_folder", "versions"]

_log = logging.getLogger(__name__)

_FORMAT: Final = 1
_SCENARIO: Final = "scenario.json"
_RUNS: Final = "runs"
_DIGEST_BYTES: Final = 32


class _Kept(msgspec.Struct, frozen=True):
    """What a checkpoint's file holds behind its digest: whose run it is of, and where it stands."""

    of: str
    checkpoint: Checkpoint


class Folder:
    """A folder that belongs to one scenario, and to this process."""

    def __init__(self, path: Path, digest: str) -> None:
        """Use a folder that is held and was compared already."""
        self.path = path
        self._digest = digest

    def load(self, strategy: str, seed: int) -> Checkpoint | None:
        """Return where a run stands, None when it has not begun. A damaged file is put aside, and said."""
        path = self._file(strategy, seed)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: cannot be read: {error.strerror}; check the folder's owner") from None
        digest, packed = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() == digest:
            try:
                kept = msgspec.msgpack.decode(packed, type=_Kept)
            except msgspec.MsgspecError:
                pass
            else:
                if kept.of == self._name(strategy, seed):
                    return kept.checkpoint
        moved = quarantine(path, self.path)
        _log.warning("%s is damaged and was moved to %s; this run begins again", path, moved)
        return None

    def keep(self, strategy: str, seed: int, checkpoint: Checkpoint) -> None:
        """Store where a run stands, so that it is there after a power cut."""
        packed = msgspec.msgpack.encode(_Kept(self._name(strategy, seed), checkpoint))
        write_durably(self._file(strategy, seed), hashlib.sha256(packed).digest() + packed)

    def _file(self, strategy: str, seed: int) -> Path:
        return self.path / _RUNS / f"{strategy}-{seed}.checkpoint"

    def _name(self, strategy: str, seed: int) -> str:
        return f"{self._digest} {strategy} {seed}"


@contextmanager
def open_folder(path: Path, scenario: Scenario) -> Iterator[Folder]:
    """Hold the folder of a scenario's runs, made if need be.

    Raises `ConfigError` when it holds another scenario's, or those of other versions, or anything else than a
    simulation; `StateError` when another process uses it.
    """
    if path.is_dir() and not (path / _SCENARIO).exists() and any(each.name != "lock" for each in path.iterdir()):
        raise ConfigError(f"--out {path}: holds something else than a simulation; give the name of another folder")
    identity = _identity(scenario)
    with held_folder(path):
        _compare(path, identity)
        make_folder(path / _RUNS)
        yield Folder(path, hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest())


def versions() -> dict[str, str]:
    """Return the versions of what decides results."""
    return {name: metadata.version(name) for name in ("distreal-edge", "numpy")}


def _identity(scenario: Scenario) -> dict[str, Any]:
    """Return what runs must have in common, as plain data; runs of more strategies may come later."""
    told: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(scenario, strategies=()))
    return {"format": _FORMAT, "scenario": told, "files": _files(scenario), "versions": versions()}


def _files(scenario: Scenario) -> dict[str, str]:
    """Return digests of the files that a scenario names: one that was changed makes another scenario."""
    named = [scenario.network.file, None if scenario.table is None else scenario.table.file]
    paths = [Path(name).expanduser() for name in named if name is not None]
    if scenario.availability.traces is not None and scenario.availability.kind == "recorded":
        paths += sorted(Path(scenario.availability.traces).expanduser().glob("*.csv"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def _compare(path: Path, identity: dict[str, Any]) -> None:
    file = path / _SCENARIO
    encoded = msgspec.json.format(msgspec.json.encode(identity, order="deterministic"))
    try:
        there: Any = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError:
        write_durably(file, encoded)
        return
    except msgspec.DecodeError:
        # Each checkpoint says as well whose it is.
        _log.warning("%s is damaged and was moved to %s", file, quarantine(file, path))
        write_durably(file, encoded)
        return
    now = msgspec.json.decode(encoded)
    if there != now:
        raise ConfigError(
            f"--out {path}: holds runs of another scenario: {_difference(there, now)}; give the name of another folder"
        )


def _difference(there: Any, now: Any, place: str = "") -> str:
    """Say in words where two trees of plain data first differ."""
    if isinstance(there, dict) and isinstance(now, dict):
        key = next(key for key in sorted({*there, *now}) if there.get(key) != now.get(key))
        return _difference(there.get(key), now.get(key), f"{place}.{key}")
    return f"{place.removeprefix('.').removeprefix('scenario.')} is {there} there, and {now} here"
