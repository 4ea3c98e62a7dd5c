"""Write a configuration struct as the TOML that it would be read from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["to_toml"]


def to_toml(config: msgspec.Struct, comment: str) -> str:
    """Return the struct as TOML text under a comment; fields that are None are left out, they are the defaults."""
    lines = [*(f"# {line}" for line in comment.splitlines()), ""]
    _section(lines, (), msgspec.to_builtins(config))
    return "\n".join(lines).rstrip() + "\n"


def _section(lines: list[str], path: tuple[str, ...], content: Mapping[str, Any]) -> None:
    # A section's plain values come before its inner sections: TOML would take them for the inner section's else.
    inner = {key: value for key, value in content.items() if _is_section(value)}
    plain = {key: value for key, value in content.items() if key not in inner and value is not None}
    lines += [f"{key} = {_value(value)}" for key, value in plain.items()]
    if plain:
        lines.append("")
    for key, value in inner.items():
        sections = [value] if isinstance(value, dict) else value
        brackets = ("[", "]") if isinstance(value, dict) else ("[[", "]]")
        for section in sections:
            lines.append(f"{brackets[0]}{'.'.join((*path, key))}{brackets[1]}")
            _section(lines, (*path, key), section)


def _is_section(value: object) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(item, dict) for item in value)
    )


def _value(value: object) -> str:
    # Strings, numbers, truth values and lists of them read the same in JSON and TOML; DEL must be escaped in TOML only.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
