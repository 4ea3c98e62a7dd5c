"""Read a TOML file into its struct, and say where a mistake is."""

from __future__ import annotations

import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from distreal_edge.config.device import DeviceConfig
from distreal_edge.config.explain import explain, explain_toml
from distreal_edge.config.federation import FederationConfig
from distreal_edge.config.fields import Broker
from distreal_edge.errors import ConfigError, DistrealError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distreal_edge.config.explain import Place

__all__ = ["find_role", "load_config", "named_by"]

LARGEST_FILE_BYTES: Final = 256 * 1024

_File = TypeVar("_File", bound=msgspec.Struct)
_FILES: Final[dict[str, type[msgspec.Struct]]] = {"device.toml": DeviceConfig, "federation.toml": FederationConfig}


def load_config(path: str | Path, kind: type[_File]) -> _File:
    """Read `path` as a `kind`; raise `ConfigError` that names the key, its line and the nearest known key.

    Whatever can be known to be wrong from the file alone is found here, before anything starts. Certificates are
    looked for beside it.
    """
    text = _read(path)
    document = _parse(path, text)
    try:
        found = msgspec.convert(document, type=kind)
    except msgspec.ValidationError as error:
        where, what = explain(str(error), kind, document, _FILES)
        message = f"{path}:{_line(text, where)}: {what}"
        raise ConfigError(message) from None
    broker = getattr(found, "broker", None)
    if not isinstance(broker, Broker):
        return found
    return msgspec.structs.replace(found, broker=broker.beside(Path(path).parent.absolute()))


def find_role(path: str | Path) -> type[DeviceConfig | FederationConfig]:
    """Return whose file this is, by the keys that only one role has; raise `ConfigError` when they do not tell."""
    keys = set(_parse(path, _read(path)))
    devices, federations = set(DeviceConfig.__struct_fields__), set(FederationConfig.__struct_fields__)
    of_device, of_federation = len(keys & (devices - federations)), len(keys & (federations - devices))
    if of_device == of_federation:
        message = f"{path}: its keys do not tell whether it is a device's file or the federation's; say --role"
        raise ConfigError(message)
    return DeviceConfig if of_device > of_federation else FederationConfig


@contextmanager
def named_by(path: str | Path, *keys: str) -> Iterator[None]:
    """Have an error of ours begin with where the configuration names what is used here: file, line and key."""
    try:
        yield
    except DistrealError as error:
        message = f"{path}:{_line(_read(path), keys)}: {'.'.join(keys)}: {error}"
        raise type(error)(message) from None


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
        return data.decode("utf-8-sig")  # some editors begin a file with a mark of its encoding
    except UnicodeDecodeError as error:
        message = f"{path}: cannot read the configuration: byte {error.start} is not UTF-8 text"
        raise ConfigError(message) from None


def _parse(path: str | Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        line, what = explain_toml(error, text)
        message = f"{path}:{line}: {what}"
        raise ConfigError(message) from None
    except RecursionError:
        message = f"{path}: not TOML: nested too deeply"
        raise ConfigError(message) from None


def _line(text: str, where: Place) -> int:
    """Return the line on which the value at the path begins, or the innermost table around it; 1 for the whole file.

    TOML is read statement by statement: the value begins behind the longest sound part of the file without it.
    """
    lines = [f"{line}\n" for line in text.split("\n")]  # not splitlines(): only this ends a line in TOML
    for depth in range(len(where), 0, -1):
        if _holds(tomllib.loads(text), where[:depth]):
            return _sound_without(lines, where[:depth]) + 1
    return 1


def _sound_without(lines: list[str], where: Place) -> int:
    """Return how many lines at the beginning are sound TOML without the value that the whole has, at most."""
    # By halves: a file may have thousands of lines.
    most, before = 0, len(lines)
    while before - most > 1:
        middle = (most + before) // 2
        for end in range(middle, before):
            try:
                part = tomllib.loads("".join(lines[:end]))
            except ValueError:  # inside a value of several lines
                continue
            if not _holds(part, where):
                most = end
            break
        if most < middle:
            before = middle
    return most


def _holds(document: Any, where: Place) -> bool:
    for part in where:
        if isinstance(document, dict):
            if part not in document:
                return False
        elif not (isinstance(document, list) and isinstance(part, int) and part < len(document)):
            return False
        document = document[part]
    return True
