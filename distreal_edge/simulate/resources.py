"""Availability over virtual time: a trace for each device, recorded or made up, from a seed."""

from __future__ import annotations

from functools import cache
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
            return _shifted(_recorded(availability.traces), device, rng)


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


def _shifted(traces: tuple[Trace, ...], device: int, rng: np.random.Generator) -> Trace:
    """Return one of the traces from a place drawn at random on: boards that share one must not move together."""
    trace = traces[device % len(traces)]
    begin_s = rng.uniform(0.0, trace.seconds[-1]) if len(trace.seconds) > 1 else 0.0
    first = max(number for number, second in enumerate(trace.seconds) if second <= begin_s)
    # What came before that place follows at the end.
    length_s = trace.seconds[-1] + (trace.seconds[-1] / max(1, len(trace.seconds) - 1) or 1.0)
    order = [*range(first, len(trace.seconds)), *range(first)]
    seconds = [max(0.0, (trace.seconds[number] - begin_s) % length_s) if number != first else 0.0 for number in order]
    return Trace(
        tuple(seconds),
        tuple(trace.cores[number] for number in order),
        tuple(trace.memory_bytes[number] for number in order) if trace.memory_bytes else (),
        tuple(trace.temperature_c[number] for number in order) if trace.temperature_c else (),
    )
