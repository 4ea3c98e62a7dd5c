"""Say in the words of whoever writes a configuration what is wrong with it, and what to write instead."""

from __future__ import annotations

import json
import re
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from distreal_edge.config.fields import PATTERNS, meant
from distreal_edge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Place", "explain", "explain_toml"]

Place = tuple[str | int, ...]
"""Of a value: keys, and positions in lists."""

_PLACE: Final = re.compile(r" - at `\$(?P<place>[^`]*)`$")
_STEP: Final = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(?P<key>.*)`")
_OTHER_TYPE: Final = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`")
_BOUND: Final = re.compile(r"Expected `(?P<expected>[^`]*)` (?P<sign>[<>]=?) (?P<bound>\S+)")
_LENGTH: Final = re.compile(r"Expected `(?P<expected>[^`]*)` of length (?P<sign>[<>]=) (?P<bound>\d+)")
_CHOICE: Final = re.compile(r"Invalid enum value .*", re.DOTALL)
_OURS: Final = re.compile(r"(?P<key>[a-z_]+): (?P<reason>.*)", re.DOTALL)
_TOML_PLACE: Final = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")

_WORDS: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a real number",
    "bool": "true or false",
    "array": "a list",
    "object": "a section",
    "datetime": "a date",
    "date": "a date",
    "time": "a time",
}
_SIGNS: Final = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}
_TOML_HINTS: Final = {
    "Invalid value": "put texts in quotes, and write true and false in small letters",
    "Expected '=' after a key": "write key = value, and sections in [brackets]",
    "Expected newline or end of document": "what follows the value does not belong there; put texts in quotes",
    "Cannot overwrite a value": "this stands here for the second time",
    "Cannot declare": "this section stands here for the second time",
    "Unclosed array": "the list needs its closing ]",
}
_SHOWN_CHARACTERS: Final = 60


def explain(
    complaint: str, kind: type[msgspec.Struct], document: Mapping[str, Any], others: Mapping[str, type[msgspec.Struct]]
) -> tuple[Place, str]:
    """Return the place of the value that is wrong, and what is wrong with it, from msgspec's words.

    `others` are the files of other roles, by name: a key may have got into the wrong one.
    """
    place = _PLACE.search(complaint)
    where: Place = ()
    if place is not None:
        where = tuple(key or int(position) for key, position in _STEP.findall(place["place"]))
        complaint = complaint[: place.start()]
    name = _shown(where) or "the file"
    if unknown := _UNKNOWN.fullmatch(complaint):
        key = unknown["key"]
        hint = _hint(key, _value(document, (*where, key)), kind, where, others)
        return (*where, key), f"unknown key {_shown((*where, key))}; {hint}"
    if missing := _MISSING.fullmatch(complaint):
        return where, f"key {_shown((*where, missing['key']))} is missing"
    for pattern, advice in PATTERNS.items():
        if complaint == f"Expected `str` matching regex {pattern!r}":
            return where, f"{name}: {advice}"
    ours = _OURS.fullmatch(complaint)
    if ours and ours["key"] in _keys(kind, where):
        return (*where, ours["key"]), f"{_shown((*where, ours['key']))}: {ours['reason']}"
    return where, f"{name}: {_wrong_value(complaint, _annotation(kind, where), _value(document, where))}"


def explain_toml(error: ValueError, text: str) -> tuple[int, str]:
    """Return the line on which a file is no TOML, and why, from tomllib's words."""
    message = str(error)
    place = _TOML_PLACE.search(message)
    line = len(text.rstrip().splitlines()) or 1
    if place is not None:
        line = line if place["line"] is None else int(place["line"])
        column = "" if place["column"] is None else f" at column {place['column']}"
        message = f"{message[: place.start()]}{column}"
    hint = next((hint for begin, hint in _TOML_HINTS.items() if message.startswith(begin)), None)
    return line, f"not TOML: {message}" if hint is None else f"not TOML: {message}; {hint}"


def _wrong_value(complaint: str, annotation: object, value: object) -> str:
    if other := _OTHER_TYPE.fullmatch(complaint):
        expected = other["expected"].removesuffix(" | null")
        got = _word(other["got"])
        wanted = {"float": "a number"}.get(expected) or _word(expected)
        return f"expected {wanted}, got {got}{_instead(expected, annotation, value)}"
    if bound := _BOUND.fullmatch(complaint):
        limit = f"{float(bound['bound']):g}" if bound["expected"] == "float" else bound["bound"]
        wanted = "a number" if bound["expected"] == "float" else _word(bound["expected"])
        return f"expected {wanted} {_SIGNS[bound['sign']]} {limit}, got {value}"
    if length := _LENGTH.fullmatch(complaint):
        if length["sign"] == ">=":
            return "must not be empty"
        unit = "characters" if length["expected"] == "str" else "entries"
        return f"has more than the {length['bound']} {unit} that fit here"
    if _CHOICE.fullmatch(complaint):
        choices = _choices(annotation)
        return f"{_written(value)} is not known; {meant(str(value), choices)}choose one of {', '.join(choices)}"
    return f"{complaint[0].lower()}{complaint[1:]}"


def _instead(expected: str, annotation: object, value: object) -> str:
    """Say how the value would be written in the type that is expected, where that can be guessed."""
    if expected == "array" and _struct_in(annotation) is not None and isinstance(value, dict):
        return "; write its header in double brackets: [[...]]"
    if expected == "array" and isinstance(value, str | int | float):
        return f"; write [{_written(value)}]"
    if choices := _choices(annotation):
        return f"; choose one of {', '.join(choices)}"
    if expected == "str" and isinstance(value, int | float):
        return "; put it in quotes"
    if expected in {"int", "float", "bool"} and isinstance(value, str):
        return "; write it without quotes"
    return ""


def _hint(
    key: str, value: object, kind: type[msgspec.Struct], where: Place, others: Mapping[str, type[msgspec.Struct]]
) -> str:
    known = _keys(kind, where)
    if guess := meant(key, known):
        return guess.strip()
    # A key of another section, or a section that stands inside of another: not a key that is called like a section.
    elsewhere = [
        section
        for section, keys, sections in _sections(kind)
        if key in keys and (key in sections) == isinstance(value, dict)
    ]
    if elsewhere:
        return f"it belongs {' or '.join(_below(section) for section in elsewhere)}"
    for name, other in others.items():
        if other is not kind and any(key in keys for section, keys, _ in _sections(other) if section == _shown(where)):
            own = next(own for own, each in others.items() if each is kind)
            return f"that is a key of {name}, and this file is read as {own}"
    return f"known here: {', '.join(known)}"


def _below(section: str) -> str:
    return f"below [{section}]" if section else "at the top, before the first section"


def _sections(kind: type[msgspec.Struct], name: str = "") -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """Yield each section with its keys, and with those of them that are sections, from the outermost."""
    hints = get_type_hints(kind, include_extras=True)
    inner = {key: found for key in kind.__struct_fields__ if (found := _struct_in(hints[key])) is not None}
    yield name, kind.__struct_fields__, tuple(inner)
    for key, each in inner.items():
        yield from _sections(each, f"{name}.{key}".removeprefix("."))


def _keys(kind: type[msgspec.Struct], where: Place) -> tuple[str, ...]:
    inner = _struct_in(_annotation(kind, where)) if where else kind
    return () if inner is None else inner.__struct_fields__


def _annotation(kind: type[msgspec.Struct], where: Place) -> object:
    """Return the type of the value at a place, with what is said about it; None when there is no such place."""
    annotation: object = kind
    for part in where:
        if isinstance(part, str):
            inner = _struct_in(annotation)
            annotation = None if inner is None else get_type_hints(inner, include_extras=True).get(part)
        else:
            annotation = next((args[0] for each in _parts(annotation) if (args := _entries(each))), None)
    return annotation


def _parts(annotation: object) -> Iterator[object]:
    """Yield a type, and those of which it is a choice, or about which it says something."""
    yield annotation
    if get_origin(annotation) in {Annotated, Union, UnionType}:
        for part in get_args(annotation):
            yield from _parts(part)


def _entries(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) is tuple else ()


def _choices(annotation: object) -> list[str]:
    return [str(choice) for part in _parts(annotation) if get_origin(part) is Literal for choice in get_args(part)]


def _struct_in(annotation: object) -> type[msgspec.Struct] | None:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next((found for part in get_args(annotation) if (found := _struct_in(part)) is not None), None)


def _value(document: object, where: Place) -> object:
    for part in where:
        try:
            document = document[part]  # type: ignore[index]
        except (LookupError, TypeError):
            return None
    return document


def _word(types: str) -> str:
    return " or ".join(_WORDS.get(each, each) for each in types.split(" | "))


def _written(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _shown(where: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return printable(text.removeprefix("."))
