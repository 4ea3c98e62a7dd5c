"""Read a TOML file into its struct, and say where a mistake is."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import TypeVar, get_args

import msgspec

from distreal_edge.errors import ConfigError

__all__ = ["load_config"]

_File = TypeVar("_File", bound=msgspec.Struct)
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<where>[^`]*)`)?")
_PLACE = re.compile(r" - at `\$\.?(?P<where>[^`]*)`")


def load_config(path: str | Path, kind: type[_File]) -> _File:
    """Read `path` as a `kind`; raise `ConfigError` that names the key, its line and the nearest known key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"{path}: cannot read the configuration: {reason}"
        raise ConfigError(message) from None
    try:
        return msgspec.convert(tomllib.loads(text), type=kind)
    except tomllib.TOMLDecodeError as error:
        message = f"{path}: not TOML: {error}"
        raise ConfigError(message) from None
    except msgspec.ValidationError as error:
        message = f"{path}:{_explain(str(error), text, kind)}"
        raise ConfigError(message) from None


def _explain(complaint: str, text: str, kind: type[msgspec.Struct]) -> str:
    unknown = _UNKNOWN.search(complaint)
    if unknown:
        section = [part for part in (unknown["where"] or "").split(".") if part]
        key = unknown["key"]
        near = difflib.get_close_matches(key, _known_keys(kind, section), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(_known_keys(kind, section))}"
        return f"{_line(text, [*section, key])}: unknown key {'.'.join([*section, key])!r}{hint}"
    place = _PLACE.search(complaint)
    where = [part for part in (place["where"] if place else "").split(".") if part]
    reason = _PLACE.sub("", complaint)
    return f"{_line(text, where)}: {'.'.join(where) or 'the file'}: {reason[0].lower()}{reason[1:]}"


def _known_keys(kind: type[msgspec.Struct], section: list[str]) -> list[str]:
    for part in section:
        name = part.split("[")[0]
        found = next((field.type for field in msgspec.structs.fields(kind) if field.name == name), None)
        inner = _struct_in(found)
        if inner is None:
            return []
        kind = inner
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def _struct_in(annotation: object) -> type[msgspec.Struct] | None:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next((found for part in get_args(annotation) if (found := _struct_in(part)) is not None), None)


def _line(text: str, where: list[str]) -> int:
    """Return the line on which the key at the end of the path stands; 1 when it stands nowhere."""
    names = [part.split("[")[0] for part in where]
    if not names:
        return 1
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([A-Za-z0-9_.\"-]+)\s*\]+", line)
        if header:
            section = header[1]
            if section == ".".join(names):
                return number
        key = re.match(r"\s*([A-Za-z0-9_-]+)\s*=", line)
        if key and [*filter(None, section.split(".")), key[1]] == names:
            return number
    return _line(text, where[:-1])
