"""The trainable elements of a plan as one vector, and the pieces of it that are worked on one at a time.

The vector is the trainable tensors one after the other in the plan's order, each in C order. A piece lies within one
tensor and holds whole kernels, so that on how many images its elements were trained is a small product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from distreal_edge.device.survivors import Survivors
    from distreal_edge.network import Parameter, Plan

_Scalar = TypeVar("_Scalar", bound=np.generic)

__all__ = ["Piece", "elements_of", "offsets_of", "pieces_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The elements `begin` to `end` of the vector: those of tensor `name` whose rows and columns have these filters.

    `rows` is int32 `[groups, r]`, `columns` int32 `[groups, c]`, or None for a vector; each pair of them stands for
    `kernel` elements.
    """

    name: str
    begin: int
    end: int
    rows: NDArray[np.int32]
    columns: NDArray[np.int32] | None
    kernel: int

    def images(self, survivors: Survivors) -> NDArray[np.float64]:
        """Return on how many images each pair was trained, float64 `[elements / kernel]`."""
        if self.columns is None:
            return survivors.images_of_filters(self.rows.reshape(-1))
        return survivors.images_of_pairs(self.rows, self.columns).reshape(-1)

    def spread(self, pairs: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Return for every element what there is for every pair."""
        return pairs if self.kernel == 1 else np.repeat(pairs, self.kernel)


def elements_of(plan: Plan) -> int:
    """Return how many trainable elements there are."""
    return sum(prod(parameter.shape) for parameter in plan.parameters.values())


def offsets_of(plan: Plan) -> dict[str, tuple[int, int]]:
    """Return where each trainable tensor begins and ends in the vector."""
    offsets: dict[str, tuple[int, int]] = {}
    begin = 0
    for name, parameter in plan.parameters.items():
        end = begin + prod(parameter.shape)
        offsets[name] = (begin, end)
        begin = end
    return offsets


def pieces_of(plan: Plan, most_elements: int) -> Iterator[Piece]:
    """Yield pieces of at most so many elements that make up the vector, in order; a kernel is never parted."""
    begin = 0
    for name, parameter in plan.parameters.items():
        for rows, columns, kernel, elements in _parts(parameter, most_elements):
            yield Piece(name, begin, begin + elements, rows, columns, kernel)
            begin += elements


def _parts(parameter: Parameter, most: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32] | None, int, int]]:
    if parameter.columns is None:
        flat = parameter.rows.reshape(1, -1)
        for begin in range(0, flat.size, most):
            rows = flat[:, begin : begin + most]
            yield rows, None, 1, rows.size
        return
    kernel = prod(parameter.shape[2:])
    groups, of_group = parameter.rows.shape
    row = parameter.columns.shape[1] * kernel
    if of_group * row <= most:  # whole groups
        at_once = most // (of_group * row)
        for begin in range(0, groups, at_once):
            several = parameter.rows[begin : begin + at_once]
            yield several, parameter.columns[begin : begin + at_once], kernel, several.size * row
        return
    at_once, columns_at_once = max(1, most // row), max(1, min(row, most) // kernel)
    for group in range(groups):
        for begin in range(0, of_group, at_once):
            rows = parameter.rows[group : group + 1, begin : begin + at_once]
            for first in range(0, parameter.columns.shape[1], columns_at_once):
                columns = parameter.columns[group : group + 1, first : first + columns_at_once]
                yield rows, columns, kernel, rows.size * columns.size * kernel
