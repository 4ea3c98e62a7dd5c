"""Filter groups: which channels of which values live or die together.

Every output channel of an ordinary convolution starts as a filter of its own. Additions and products tie the channels
that meet in them; concatenations keep their parts, by offset; a depthwise convolution follows what it reads; a flatten
spreads a filter over its columns. What is tied to the network's input or to its outputs is never dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distreal_edge.network.operations import INPUT, Add, Concat, Conv2d, Flatten, Linear, Multiply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from distreal_edge.network.operations import Operation, Shape

__all__ = ["NEVER_DROPPED", "FilterGroup", "Layout", "find_layout", "is_depthwise"]

NEVER_DROPPED = -1


@dataclass(frozen=True, slots=True)
class FilterGroup:
    """Filters that must live or die together: named after the first convolution that makes them."""

    name: str
    filters: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The filter groups of a plan, and the filter behind every channel of every value.

    Filters are numbered through all groups, group after group. `of[value]` is int32 `[channels or features]`: the
    number of the filter behind each, or -1 for what is never dropped. `streams` are the positions of the groups that
    an addition ties: the residual streams.
    """

    groups: tuple[FilterGroup, ...]
    of: Mapping[str, NDArray[np.int32]]
    streams: frozenset[int]


def is_depthwise(convolution: Conv2d, in_channels: int) -> bool:
    """Return whether every output channel reads exactly one input channel, of several."""
    return convolution.groups == in_channels > 1


def find_layout(operations: Sequence[Operation], shapes: Mapping[str, Shape]) -> Layout:
    """Find the filter groups of operations in order, whose values have these shapes."""
    # Atoms are the channels that convolutions make, numbered as they are made; atom 0 stands for everything that is
    # never dropped.
    made: dict[str, NDArray[np.int64]] = {INPUT: np.zeros(shapes[INPUT][0], dtype=np.int64)}
    produced: list[tuple[str, NDArray[np.int64]]] = []
    ties: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    added: list[NDArray[np.int64]] = []
    atoms = 1
    for operation in operations:
        name = operation.name
        first = made[operation.inputs[0]]
        made[name] = first
        match operation:
            case Conv2d() if is_depthwise(operation, len(first)):
                made[name] = np.repeat(first, operation.out_channels // len(first))
            case Conv2d():
                made[name] = np.arange(atoms, atoms + operation.out_channels, dtype=np.int64)
                produced.append((name, made[name]))
                atoms += operation.out_channels
            case Add() | Multiply():
                ties.append((first, made[operation.inputs[1]]))
                if isinstance(operation, Add):
                    added.append(first)
            case Concat():
                made[name] = np.concatenate([made[value] for value in operation.inputs])
            case Flatten():
                _, height, width = shapes[operation.inputs[0]]
                made[name] = np.repeat(first, height * width)
            case Linear():
                made[name] = np.zeros(operation.out_features, dtype=np.int64)
    output = made[operations[-1].name]
    ties.append((output, np.zeros_like(output)))
    least = _least_tied(atoms, ties)
    groups, filter_of = _number_filters(least, produced)
    of = {value: filter_of[channels] for value, channels in made.items()}
    ends = np.cumsum([group.filters for group in groups])
    streams: set[int] = set()
    for channels in added:
        filters = filter_of[channels]
        streams.update(np.unique(np.searchsorted(ends, filters[filters >= 0], side="right")).tolist())
    return Layout(groups, of, frozenset(streams))


def _least_tied(atoms: int, ties: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
    # The smallest atom that each atom is tied to, through any number of ties. Whole arrays at a time, because a plan
    # from a file may tie a million channels: trees hook onto trees with a smaller root until no tie joins two, which
    # at least halves what is left to join in two passes.
    left = np.concatenate([one for one, _ in ties])
    right = np.concatenate([other for _, other in ties])
    root = np.arange(atoms, dtype=np.int64)
    while True:
        one, other = root[left], root[right]
        apart = one != other
        if not apart.any():
            return root
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(higher := root[root], root):
            root = higher


def _number_filters(
    least: NDArray[np.int64], produced: Sequence[tuple[str, NDArray[np.int64]]]
) -> tuple[tuple[FilterGroup, ...], NDArray[np.int32]]:
    # Filters that are made by the same convolutions form one group: an addition over a part of a concatenation can
    # split a convolution's outputs into several. `makers` tells sets of convolutions apart by a number, refined one
    # convolution after the other. A filter is known by its least atom, so that filters are in the order they are made.
    makers = np.zeros(len(least), dtype=np.int64)
    sets = 1
    for _, channels in produced:
        roots = np.unique(least[channels])
        before, which = np.unique(makers[roots], return_inverse=True)
        makers[roots] = sets + which
        sets += len(before)
    roots = np.unique(least)[1:]
    _, first, which = np.unique(makers[roots], return_index=True, return_inverse=True)
    order = np.argsort(first)  # groups in the order of their first filters
    group_of = np.empty_like(order)
    group_of[order] = np.arange(len(order))
    by_group = np.argsort(group_of[which], kind="stable")
    filter_of_root = np.full(len(least), NEVER_DROPPED, dtype=np.int32)
    filter_of_root[roots[by_group]] = np.arange(len(roots), dtype=np.int32)
    members = np.split(roots[by_group], np.cumsum(np.bincount(group_of[which], minlength=len(order)))[:-1])
    starts = [int(channels[0]) for _, channels in produced]
    first_makers = [bisect_right(starts, int(group[0])) - 1 for group in members] if len(roots) else []
    times = Counter(first_makers)
    groups: list[FilterGroup] = []
    for group, maker in zip(members, first_makers, strict=False):
        name = produced[maker][0]
        if times[maker] > 1:
            name = f"{name}[{int(group[0]) - starts[maker]}:{int(group[-1]) - starts[maker] + 1}]"
        groups.append(FilterGroup(name, len(group)))
    return tuple(groups), filter_of_root[least]
