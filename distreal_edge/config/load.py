"""Read a TOML file into its struct, and say where a mistake is."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import msgspec

from distreal_edge.config.device import DeviceConfig
from distreal_edge.config.federation import FederationConfig
from distreal_edge.config.fields import PATTERNS
from distreal_edge.errors import ConfigError

__all__ = ["find_role", "load_config"]

LARGEST_FILE_BYTES: Final = 256 * 1024

_File = TypeVar("_File", bound=msgspec.Struct)
_Path = tuple[str | int, ...]  # of a value: keys, and positions in arrays

_PLACE = re.compile(r" - at `\$(?P<place>[^`]*)`$")
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_OURS = re.compile(r"(?P<key>[a-z_]+): (?P<reason>.*)", re.DOTALL)


def load_config(path: str | Path, kind: type[_File]) -> _File:
    """Read `path` as a `kind`; raise `ConfigError` that names the key, its line and the nearest known key.

    Whatever can be known to be wrong from the file alone is found here, before anything starts.
    """
    text = _read(path)
    document = _parse(path, text)
    try:
        return msgspec.convert(document, type=kind)
    except msgspec.ValidationError as error:
        where, what = _explain(str(error), kind)
        message = f"{path}:{_line(text, where)}: {what}"
        raise ConfigError(message) from None


def find_role(path: str | Path) -> type[DeviceConfig | FederationConfig]:
    """Return whose file this is, by the keys that only one role has; raise `ConfigError` when they do not tell."""
    keys = set(_parse(path, _read(path)))
    devices, federations = set(DeviceConfig.__struct_fields__), set(FederationConfig.__struct_fields__)
    of_device, of_federation = len(keys & (devices - federations)), len(keys & (federations - devices))
    if of_device == of_federation:
        message = f"{path}: its keys do not tell whether it is a device's file or the federation's; say --role"
        raise ConfigError(message)
    return DeviceConfig if of_device > of_federation else FederationConfig


def _read(path: str | Path) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        message = f"{path}: cannot read the configuration: {error.strerror}"
        raise ConfigError(message) from None
    if len(data) > LARGEST_FILE_BYTES:
        message = f"{path}: more than the {LARGEST_FILE_BYTES} bytes that a configuration may have"
        raise ConfigError(message)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        message = f"{path}: cannot read the configuration: byte {error.start} is not UTF-8 text"
        raise ConfigError(message) from None


def _parse(path: str | Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{path}: not TOML: {error}"
        raise ConfigError(message) from None


def _explain(complaint: str, kind: type[msgspec.Struct]) -> tuple[_Path, str]:
    """Return the path of the value that is wrong, and what is wrong with it, from msgspec's words."""
    place = _PLACE.search(complaint)
    where: _Path = ()
    if place is not None:
        where = tuple(key or int(position) for key, position in _STEP.findall(place["place"]))
        complaint = complaint[: place.start()]
    if unknown := _UNKNOWN.fullmatch(complaint):
        key, known = unknown["key"], _known_keys(kind, where)
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return (*where, key), f"unknown key {_shown((*where, key))}; {hint}"
    if missing := _MISSING.fullmatch(complaint):
        return where, f"key {_shown((*where, missing['key']))} is missing"
    for pattern, advice in PATTERNS.items():
        if complaint == f"Expected `str` matching regex {pattern!r}":
            return where, f"{_shown(where)}: {advice}"
    ours = _OURS.fullmatch(complaint)
    if ours and ours["key"] in _known_keys(kind, where):
        return (*where, ours["key"]), f"{_shown((*where, ours['key']))}: {ours['reason']}"
    return where, f"{_shown(where) or 'the file'}: {complaint[0].lower()}{complaint[1:]}"


def _shown(where: _Path) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return "".join(letter if letter.isprintable() else "?" for letter in text.removeprefix("."))


def _known_keys(kind: type[msgspec.Struct], where: _Path) -> tuple[str, ...]:
    for part in where:
        if isinstance(part, int):
            continue
        found = next((field.type for field in msgspec.structs.fields(kind) if field.name == part), None)
        inner = _struct_in(found)
        if inner is None:
            return ()
        kind = inner
    return kind.__struct_fields__


def _struct_in(annotation: object) -> type[msgspec.Struct] | None:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next((found for part in get_args(annotation) if (found := _struct_in(part)) is not None), None)


def _line(text: str, where: _Path) -> int:
    """Return the line on which the value at the path begins, or the innermost table around it; 1 for the whole file.

    TOML is read statement by statement: the value begins behind the longest sound part of the file without it.
    """
    lines = [f"{line}\n" for line in text.split("\n")]  # not splitlines(): only this ends a line in TOML
    for depth in range(len(where), 0, -1):
        sound = 0
        for end in range(1, len(lines) + 1):
            try:
                part = tomllib.loads("".join(lines[:end]))
            except ValueError:  # inside a value of several lines
                continue
            if _holds(part, where[:depth]):
                return sound + 1
            sound = end
    return 1


def _holds(document: Any, where: _Path) -> bool:
    for part in where:
        if isinstance(document, dict):
            if part not in document:
                return False
        elif not (isinstance(document, list) and isinstance(part, int) and part < len(document)):
            return False
        document = document[part]
    return True
