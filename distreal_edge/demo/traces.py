"""What is free on each emulated board, second by second: made up, as step functions of the time, or recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.device import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["make_trace", "trace_csv", "trace_story"]

Stretch = tuple[float, float]  # seconds it lasts, cores that are free


def _mostly_free(rng: np.random.Generator) -> Iterator[Stretch]:
    while True:
        yield rng.uniform(4.0, 9.0), 4.0
        yield rng.uniform(2.0, 4.0), float(rng.choice([1.0, 1.5, 2.0]))


def _day_and_night(rng: np.random.Generator) -> Iterator[Stretch]:
    while True:
        yield rng.uniform(4.5, 6.5), 1.0
        yield rng.uniform(4.5, 6.5), 3.5


def _bursty(rng: np.random.Generator) -> Iterator[Stretch]:
    cores = 4.0
    while True:
        yield rng.uniform(2.0, 5.0), cores
        cores = float(rng.choice([level for level in (1.0, 2.0, 3.0, 4.0) if level != cores]))


def _weak(rng: np.random.Generator) -> Iterator[Stretch]:
    cores = 1.0
    while True:
        yield rng.uniform(3.0, 6.0), cores
        cores = float(rng.choice([level for level in (0.5, 1.0, 1.5, 2.0) if level != cores]))


_KINDS: Final[tuple[tuple[str, Callable[[np.random.Generator], Iterator[Stretch]]], ...]] = (
    ("mostly free, 4 cores with short dips", _mostly_free),
    ("day and night, 1 or 3.5 cores by turns", _day_and_night),
    ("bursty, 1 to 4 cores", _bursty),
    ("weak, 0.5 to 2 cores", _weak),
)


def make_trace(number: int, *, duration_s: float, seed: int) -> Trace:
    """Return the trace of device `number`, counted from 0; four characters take turns, no two traces are equal.

    Cores change every few seconds for `duration_s`. The same arguments always give the same trace.
    """
    _, stretches = _KINDS[number % len(_KINDS)]
    rng = np.random.default_rng((seed, number))
    seconds: list[float] = []
    cores: list[float] = []
    now_s = 0.0
    for lasts_s, free in stretches(rng):
        if now_s >= duration_s:
            break
        seconds.append(round(now_s, 2))
        cores.append(free)
        now_s += lasts_s
    return Trace(tuple(seconds), tuple(cores))


def trace_story(number: int) -> str:
    """Say in words how the cores of device `number` change."""
    return _KINDS[number % len(_KINDS)][0]


def trace_csv(trace: Trace) -> str:
    """Return the trace as the CSV text that `[resources] trace` reads; reading it gives the same trace."""
    columns: dict[str, tuple[float | None, ...]] = {"seconds": trace.seconds, "cores": trace.cores}
    told = {"memory": trace.memory_bytes, "temperature": trace.temperature_c}
    columns |= {name: column for name, column in told.items() if column}
    lines = [",".join(map(_written, entry)) for entry in zip(*columns.values(), strict=True)]
    return "\n".join([",".join(columns), *lines, ""])


def _written(value: float | None) -> str:
    if value is None:
        return ""
    short = f"{value:g}"
    return short if float(short) == value else repr(value).removesuffix(".0")
