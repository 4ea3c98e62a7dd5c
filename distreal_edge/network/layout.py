"""Filter groups: which channels of which values live or die together.

Every output channel of an ordinary convolution starts as a filter of its own. Additions and products tie the channels
that meet in them; concatenations keep their parts, by offset; a depthwise convolution follows what it reads; a flatten
spreads a filter over its columns. What is tied to the network's input or to its outputs is never dropped.
"""

from __future__ import annotations

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


def find_layout(
    operations: Sequence[Operation], shapes: Mapping[str, Shape]
) -> Layout:
    """Find the filter groups of operations in order, whose values have these shapes."""
    classes = _Classes()
    atoms: dict[str, NDArray[np.int64]] = {INPUT: np.zeros(shapes[INPUT][0], dtype=np.int64)}
    produced: dict[str, NDArray[np.int64]] = {}
    added: list[NDArray[np.int64]] = []
    for operation in operations:
        first = atoms[operation.inputs[0]]
        made = first
        match operation:
            case Conv2d() if is_depthwise(operation, len(first)):
                made = np.repeat(first, operation.out_channels // len(first))
            case Conv2d():
                made = produced[operation.name] = classes.new(operation.out_channels)
            case Add() | Multiply():
                classes.tie(first, atoms[operation.inputs[1]])
                if isinstance(operation, Add):
                    added.append(first)
            case Concat():
                made = np.concatenate([atoms[value] for value in operation.inputs])
            case Flatten():
                _, height, width = shapes[operation.inputs[0]]
                made = np.repeat(first, height * width)
            case Linear():
                made = np.zeros(operation.out_features, dtype=np.int64)
        atoms[operation.name] = made
    output = atoms[operations[-1].name]
    classes.tie(output, np.zeros_like(output))
    return _number_filters(classes, atoms, produced, added)


class _Classes:
    """Union-find over channels. Atom 0 stands for everything that is never dropped."""

    def __init__(self) -> None:
        self.parent = [0]

    def new(self, count: int) -> NDArray[np.int64]:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, atom: int) -> int:
        parent = self.parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def tie(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self.parent[high] = low

    def roots(self, atoms: NDArray[np.int64]) -> list[int]:
        return [self.root(atom) for atom in atoms.tolist()]


def _number_filters(
    classes: _Classes,
    atoms: Mapping[str, NDArray[np.int64]],
    produced: Mapping[str, NDArray[np.int64]],
    added: Sequence[NDArray[np.int64]],
) -> Layout:
    # Filters that are made by the same convolutions form one group: an addition over a part of a concatenation can
    # split a convolution's outputs into several.
    makers: dict[int, tuple[str, ...]] = {}
    first_channel: dict[int, int] = {}
    for name, made in produced.items():
        for channel, root in enumerate(classes.roots(made)):
            if root == 0:
                continue
            first_channel.setdefault(root, channel)
            known = makers.get(root, ())
            if name not in known:
                makers[root] = (*known, name)
    members: dict[tuple[str, ...], list[int]] = {}
    for root, names in makers.items():
        members.setdefault(names, []).append(root)
    shared_first = [names[0] for names in members]
    groups: list[FilterGroup] = []
    filter_of_root = {0: NEVER_DROPPED}
    group_of_root: dict[int, int] = {}
    for names, roots in members.items():
        name = names[0]
        if shared_first.count(name) > 1:
            name = f"{name}[{first_channel[roots[0]]}:{first_channel[roots[-1]] + 1}]"
        for root in roots:
            filter_of_root[root] = len(filter_of_root) - 1
            group_of_root[root] = len(groups)
        groups.append(FilterGroup(name, len(roots)))
    of = {
        value: np.array([filter_of_root[root] for root in classes.roots(channels)], dtype=np.int32)
        for value, channels in atoms.items()
    }
    streams = {group_of_root[root] for channels in added for root in classes.roots(channels) if root}
    return Layout(tuple(groups), of, frozenset(streams))
