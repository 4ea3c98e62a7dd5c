"""Availability over virtual time: a trace for each device, recorded or made up, from a seed."""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from distreal_edge.device import Trace
from distreal_edge.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distreal_edge.simulate.scenario import Availability

__all__ = ["make_trace"]

_STREAM: Final = 11
"""One stream per purpose: the same seed for traces and for shards must not tie them together."""
_NOISE: Final = 0.1
"""How far, as a share of the range, a diurnal board strays from its curve."""


def make_trace(availability: Availability, device: int, *, seed: int, every_s: float, horizon_s: float) -> Trace:
    """Return what device number `device` has free from second 0 to `horizon_s`; the last entry holds from there on.

    `every_s` is how often it is drawn anew where the scenario does not say. The same arguments give the same trace.
    Raises `ConfigError` when recorded traces cannot be read.
    """
    rng = np.random.default_rng((seed, _STREAM, device))
    every_s = availability.every_s or every_s
    low, high = availability.least, availability.most
    match availability.kind:
        case "constant":
            return Trace((0.0,), (availability.shares[device % len(availability.shares)],))
        case "redraw":
            seconds = np.arange(0.0, horizon_s, every_s)
            return _trace(seconds, rng.uniform(low, high, len(seconds)))
        case "markov":
            return _markov(rng, availability, horizon_s)
        case "diurnal":
            seconds = np.arange(0.0, horizon_s, every_s)
            phase = rng.uniform(0.0, 2.0 * np.pi)
            curve = 0.5 - 0.5 * np.cos(2.0 * np.pi * seconds / availability.day_s + phase)
            noisy = np.clip(curve + _NOISE * rng.standard_normal(len(seconds)), 0.0, 1.0)
            return _trace(seconds, low + (high - low) * noisy)
        case "recorded":
            assert availability.traces is not None
            traces = _recorded(availability.traces)
            return _repeated(traces[device % len(traces)], rng, horizon_s)


def _trace(seconds: NDArray[np.float64], cores: NDArray[np.float64]) -> Trace:
    return Trace(tuple(seconds.tolist()), tuple(cores.tolist()))


def _markov(rng: np.random.Generator, availability: Availability, horizon_s: float) -> Trace:
    # A board is found on or off as often as it is that in the long run.
    on = bool(rng.uniform() < availability.on_s / (availability.on_s + availability.off_s))
    seconds, cores, now_s = [], [], 0.0
    while now_s < horizon_s:
        seconds.append(now_s)
        cores.append(availability.most if on else availability.least)
        now_s += max(1e-3, rng.exponential(availability.on_s if on else availability.off_s))
        on = not on
    return Trace(tuple(seconds), tuple(cores))


@cache
def _recorded(folder: str) -> tuple[Trace, ...]:
    paths = sorted(Path(folder).expanduser().glob("*.csv"))
    if not paths:
        raise ConfigError(f"availability.traces: {folder} has no trace in it; record some with `distreal-edge record`")
    return tuple(Trace.load(path) for path in paths)


def _repeated(trace: Trace, rng: np.random.Generator, horizon_s: float) -> Trace:
    """Return a trace from a place drawn at random on, over and over: boards that share one must not move together."""
    entries = len(trace.seconds)
    # How long its last entry held, nobody wrote down: as long as the others in the mean.
    length_s = trace.seconds[-1] * entries / (entries - 1) if entries > 1 else horizon_s
    begin_s = rng.uniform(0.0, length_s)
    first = bisect_right(trace.seconds, begin_s) - 1
    seconds, order = [0.0], [first]
    for entry in count(first + 1):
        turn, position = divmod(entry, entries)
        second = turn * length_s + trace.seconds[position] - begin_s
        if second >= horizon_s:
            break
        if second > seconds[-1]:
            seconds.append(second)
            order.append(position)
    return Trace(
        tuple(seconds),
        tuple(trace.cores[position] for position in order),
        tuple(trace.memory_bytes[position] for position in order) if trace.memory_bytes else (),
        tuple(trace.temperature_c[position] for position in order) if trace.temperature_c else (),
    )
