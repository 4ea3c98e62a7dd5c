"""FedBuff's server (Nguyen et al., AISTATS 2022): who trains, whose updates wait, and when these are averaged.

Pure: a state machine without clocks or sockets. So many devices as `concurrency` says train at a time, each on the
model that was there when it began; as soon as one sends its update, another one begins. `buffer` updates together make
a new model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Buffered", "staleness_weight"]


def staleness_weight(staleness: int) -> float:
    """Return what a change is multiplied by whose model has been replaced so many times since: 1 / sqrt(1 + s)."""
    return float(1.0 / np.sqrt(1.0 + staleness))


class Buffered:
    """The server's state: `version` counts the models made, `training` has the version that each busy device got."""

    def __init__(self, *, buffer: int, concurrency: int, seed: int) -> None:
        """Begin with nobody training and nothing waiting."""
        self.version = 0
        self.training: dict[str, int] = {}
        self._buffer = buffer
        self._concurrency = concurrency
        self._seed = seed
        self._begun = 0
        self._waiting: list[int] = []

    @property
    def full(self) -> bool:
        """Whether enough updates wait for a new model."""
        return len(self._waiting) >= self._buffer

    @property
    def vacant(self) -> int:
        """How many more devices may train."""
        return self._concurrency - len(self.training)

    def begin(self, able: Iterable[str]) -> tuple[str, ...]:
        """Have as many devices begin as may, drawn at random among the idle ones of those that are able to."""
        idle = sorted(set(able) - set(self.training))
        chosen: list[str] = []
        while idle and self.vacant:
            place = int(np.random.default_rng((self._seed, self.version, self._begun)).integers(len(idle)))
            chosen.append(idle.pop(place))
            self.training[chosen[-1]] = self.version
            self._begun += 1
        return tuple(chosen)

    def arrived(self, device: str) -> None:
        """Note that a device's update has come, and waits."""
        self._waiting.append(self.version - self.training.pop(device))

    def gave_up(self, device: str) -> None:
        """Note that nothing will come of what a device was to train."""
        del self.training[device]

    def aggregate(self) -> tuple[int, ...]:
        """Begin the next version; return by how many versions each update that waited is behind, in order of arrival.

        As in the paper it is counted when the update comes, and those that wait for one model all come before it.
        """
        staleness, self._waiting = tuple(self._waiting), []
        self.version += 1
        return staleness
